// What a conv_gram program reads of kPairs rows of y: pixels and mask words with the rows side by side.
#pragma once

#include <map>
#include <vector>

#include "core/cpu/matrix.h"
#include "gates/cpu/pack.h"
#include "gram/cpu/problem.h"
#include "plan.h"

namespace gatedops::cpu {

// 64 bytes: every row of a map or panel starts at a cache line.
template <class T>
struct alignas(64) PairLine {
  T pair[kPairs];
};

template <class T>
class LineBuffer {
 public:
  explicit LineBuffer(int64_t numbers = 0) : lines_(static_cast<size_t>((numbers + kPairs - 1) / kPairs)) {}
  T* data() {
    return lines_.empty() ? nullptr : lines_[0].pair;
  }
  const T* data() const {
    return lines_.empty() ? nullptr : lines_[0].pair;
  }

 private:
  std::vector<PairLine<T>> lines_;
};

// Where the panel holds what a register reads.
struct PanelPart {
  int64_t first;              // column of x, or word
  int64_t positions, stride;  // words of a row between positions; of an input: channels
  int64_t used;               // of them, words that hold gates
  int64_t at;                 // position in the panel, in numbers or words
};

// Parts shared by all panels of a call.
struct PanelLayout {
  explicit PanelLayout(const Plan& plan) : part_of(plan.registers.size(), -1) {
    std::map<std::pair<int64_t, int64_t>, int> inputs, masks;  // (first, positions), and (.., channels) by stride
    for (size_t r = 0; r < plan.registers.size(); ++r) {
      const Instruction& code = plan.registers[r].code;
      if (code.op == ConvOp::input) {
        part_of[r] = static_cast<int>(parts.size());
        parts.push_back({code.first, code.out.area(), code.channels, code.channels, numbers});
        numbers += code.out.area() * code.channels * kPairs;
      } else if (code.masked()) {
        const int64_t stride = words_per_position(code.positions(), code.channels);
        const int64_t used = (code.channels + 31) / 32;
        part_of[r] = static_cast<int>(parts.size());
        parts.push_back({code.first, code.positions(), stride, used, words});
        words += code.positions() * used * kPairs;
      }
    }
  }

  std::vector<PanelPart> parts;
  std::vector<int> part_of;  // of a register; -1: reads nothing
  int64_t numbers = 0, words = 0;
};

template <class T>
class Panel {
 public:
  Panel(const Plan& plan, const PanelLayout& layout)
      : plan_(plan), layout_(layout), numbers_(layout.numbers), words_(layout.words) {}

  // Rows j .. j + kPairs - 1, of which those past the last are zeros.
  void load(const Matrix& x, const GateRows& gates, int64_t j) {
    for (size_t r = 0; r < plan_.registers.size(); ++r) {
      if (layout_.part_of[r] >= 0) {
        const PanelPart& part = layout_.parts[layout_.part_of[r]];
        if (plan_.registers[r].code.op == ConvOp::input) {
          load_pixels(x, part, j);
        } else {
          load_words(gates, part, j);
        }
      }
    }
  }

  const T* pixels(int r) const {
    return numbers_.data() + layout_.parts[layout_.part_of[r]].at;
  }
  // x: the words of the first row of x.
  MaskView mask(int r, const uint32_t* x, int64_t next) const {
    if (layout_.part_of[r] < 0) {
      return {};
    }
    const PanelPart& part = layout_.parts[layout_.part_of[r]];
    return {x + part.first, words_.data() + part.at, next, static_cast<int>(part.stride), static_cast<int>(part.used)};
  }

 private:
  // (channels, pixels) of a row to (pixels, channels, kPairs).
  void load_pixels(const Matrix& x, const PanelPart& part, int64_t j) {
    T* to = numbers_.data() + part.at;
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      const T* row = reinterpret_cast<const T*>(x.data) + (j + pair) * x.row_stride;
      for (int64_t c = 0; c < part.used; ++c) {
        for (int64_t p = 0; p < part.positions; ++p) {
          to[(p * part.used + c) * kPairs + pair] =
              j + pair < x.rows ? row[(part.first + c * part.positions + p) * x.col_stride] : T(0);
        }
      }
    }
  }

  void load_words(const GateRows& gates, const PanelPart& part, int64_t j) {
    uint32_t* to = words_.data() + part.at;
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      const uint32_t* row = j + pair < gates.rows() ? gates.row(j + pair) + part.first : nullptr;
      for (int64_t p = 0; p < part.positions; ++p) {
        for (int64_t w = 0; w < part.used; ++w) {
          to[(p * part.used + w) * kPairs + pair] = row == nullptr ? 0 : row[p * part.stride + w];
        }
      }
    }
  }

  const Plan& plan_;
  const PanelLayout& layout_;
  LineBuffer<T> numbers_;
  LineBuffer<uint32_t> words_;
};

}  // namespace gatedops::cpu
