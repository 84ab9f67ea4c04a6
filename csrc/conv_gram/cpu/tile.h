// A tile: some rows of x against kPairs rows of y, computed by one thread.
//
// Panel holds what the program reads of y, Schedule the maps of one displacement and the order in which they are
// computed, ConvTile runs the plan: segment by segment, displacement by displacement, register by register.
#pragma once

#include <vector>

#include "core/cpu/matrix.h"
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

// What a conv_gram program reads of kPairs rows of y: pixels and mask words with the rows side by side.
template <class T>
class Panel {
 public:
  Panel(const Plan& plan, const PanelLayout& layout)
      : plan_(plan), layout_(layout), numbers_(layout.numbers), words_(layout.words) {}

  // Rows j .. j + kPairs - 1, of which those past the last are zeros.
  void load(const Matrix& x, const PackedRows& gates, int64_t j);

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
  void load_pixels(const Matrix& x, const PanelPart& part, int64_t j);
  void load_words(const PackedRows& gates, const PanelPart& part, int64_t j);

  const Plan& plan_;
  const PanelLayout& layout_;
  LineBuffer<T> numbers_;
  LineBuffer<uint32_t> words_;
};

template <class T>
struct Step {
  int index;  // of the register
  Maps<T> out, src, src2;
};

template <class T>
struct SinkStep {
  int index;
  Maps<T> src;
  std::vector<PoolTap> y, x;
};

// Memory of the maps of several x, and the steps of the displacement at hand.
template <class T>
class Schedule {
 public:
  Schedule(const ConvProblem& problem, int rows)
      : problem_(problem),
        plan_(problem.plan),
        slots_(rows * plan_.slots * slot_numbers()),
        store_(rows * plan_.store_numbers),
        needed_(plan_.registers.size()) {}

  // Fills steps() and sinks() for a displacement of a segment.
  void prepare(const Segment& s, Shift at);

  const std::vector<Step<T>>& steps() const {
    return steps_;
  }
  const SinkStep<T>* begin_sinks() const {
    return sinks_.data();
  }
  const SinkStep<T>* end_sinks() const {
    return sinks_.data() + used_sinks_;
  }
  // The kernel of a stored register, of the x of index `row`.
  T* stored(const Register& r, int row) {
    return store_.data() + row * plan_.store_numbers + r.place;
  }

 private:
  // Slots are set apart by more than their size: equal addresses modulo 4096 would stall loads behind stores.
  int64_t slot_numbers() const {
    return plan_.slot_numbers + 5 * kPairs;
  }

  void mark_needed(const Segment& s, Shift at);
  void prepare_sink(const Segment& s, int index, Shift at);
  Maps<T> maps_of(int index, Shift shift, bool cyclic);

  const ConvProblem& problem_;
  const Plan& plan_;
  LineBuffer<T> slots_, store_;
  std::vector<char> needed_;
  std::vector<Step<T>> steps_;
  std::vector<SinkStep<T>> sinks_;  // the first used_sinks_ are this displacement's
  int used_sinks_ = 0;
};

// Memory for one x at a time, apart from the stored registers.
template <class T>
class ConvTile {
 public:
  ConvTile(const ConvProblem& problem, const Matrix& x, const PackedRows& gates, int rows)
      : plan_(problem.plan),
        x_(x),
        gates_(gates),
        panel_(problem.plan, problem.layout),
        schedule_(problem, rows),
        row_(plan_.row_numbers),
        x_rows_(static_cast<size_t>(rows * x.cols)),
        sums_(plan_.registers.size() * static_cast<size_t>(rows) * kPairs) {}

  // Makes the panel of rows j .. of y, unless it is the one at hand.
  void load(const Matrix& y, const PackedRows& gates, int64_t j) {
    if (j != loaded_) {
      panel_.load(y, gates, j);
      loaded_ = j;
    }
  }

  // results[r * kPairs + pair] for rows i + r of x.
  void run(int64_t i, int rows, T* results);

 private:
  void load_rows(int64_t i, int rows);
  void visit(const Segment& s, int rows, Shift first, Shift last);
  void compute(const Step<T>& step, int rows);
  void feed(const SinkStep<T>& step, int rows);
  void open_sinks(const Segment& s, int rows);
  void close_sinks(const Segment& s, int rows);
  void close(int index, int row);

  MaskView mask(int index) const {
    return panel_.mask(index, gates_.row(first_row_), gates_.stride());
  }
  double* sums(int index, int row) {
    return sums_.data() + (index * (sums_.size() / plan_.registers.size()) + static_cast<size_t>(row) * kPairs);
  }

  const Plan& plan_;
  Matrix x_;
  PackedRows gates_;
  const ConvGramKernels<T>& kernels_ = active_kernels<ConvKernels>().of<T>();
  Panel<T> panel_;
  Schedule<T> schedule_;
  LineBuffer<T> row_;
  std::vector<T> x_rows_;
  std::vector<double> sums_;  // of sinks that sum all pixels: [register][row][pair]
  int64_t loaded_ = -1, first_row_ = 0;
};

}  // namespace gatedops::cpu
