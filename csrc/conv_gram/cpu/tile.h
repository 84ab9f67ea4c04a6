// A tile is some rows of x and kPairs rows of y, which one thread computes.
//
// Panel holds what the program reads of y. Schedule holds the maps of one displacement and the order in which they are
// computed. ConvTile runs the plan segment by segment, displacement by displacement, register by register.
#pragma once

#include <vector>

#include "core/cpu/matrix.h"
#include "gram/cpu/problem.h"
#include "plan.h"

namespace gatedops::cpu {

// The numbers of kPairs pairs. The alignment makes every row of a map or panel start at a cache line.
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

// What a conv_gram program reads of kPairs rows of y: pixels and words of masks, with the rows side by side.
template <class T>
class Panel {
 public:
  Panel(const Plan& plan, const PanelLayout& layout)
      : plan_(plan), layout_(layout), numbers_(layout.numbers), words_(layout.words) {}

  // Loads rows j .. j + kPairs - 1. Rows past the last are zeros.
  void load(const Matrix& x, const PackedRows& gates, int64_t j);

  const T* pixels(int r) const {
    return numbers_.data() + layout_.parts[layout_.part_of[r]].at;
  }
  // Returns the masks of register r. x points to the words of the first row of x.
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
  // This is the index of the register.
  int index;
  Maps<T> out, src, src2;
};

template <class T>
struct SinkStep {
  int index;
  Maps<T> src;
  std::vector<PoolTap> y, x;
};

// The memory of the maps of several x, and the steps of the current displacement.
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
  // Returns the kernel of a stored register for the x of index `row`.
  T* stored(const Register& r, int row) {
    return store_.data() + row * plan_.store_numbers + r.place;
  }

 private:
  // Slots lie further apart than their size. With equal addresses modulo 4096, loads would wait for stores.
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
  std::vector<SinkStep<T>> sinks_;  // The first used_sinks_ belong to this displacement.
  int used_sinks_ = 0;
};

// Runs the plan for some rows of x and kPairs rows of y.
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

  // Loads the panel of the rows of y from j on, unless it is already loaded.
  void load(const Matrix& y, const PackedRows& gates, int64_t j) {
    if (j != loaded_) {
      panel_.load(y, gates, j);
      loaded_ = j;
    }
  }

  // Computes results[r * kPairs + pair] for rows i + r of x.
  void run(int64_t i, int rows, T* results);

 private:
  void load_rows(int64_t i, int rows);
  void visit(const Segment& s, int rows, Shift first, Shift last);
  void compute(const Step<T>& step, int rows);
  void compute_input(const Step<T>& step, int rows);
  void compute_add(const Step<T>& step, int rows);
  void compute_box(const Step<T>& step, int rows);
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
  // The sums of sinks that add up all pixels are laid out [register][row][pair].
  std::vector<double> sums_;
  int64_t loaded_ = -1, first_row_ = 0;
};

}  // namespace gatedops::cpu
