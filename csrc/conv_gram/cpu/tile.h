// Runs a plan on some rows of x against one panel of kPairs rows of y: segment by segment, displacement by
// displacement, register by register. One thread; memory for one x at a time apart from the stored registers.
#pragma once

#include "schedule.h"

namespace gatedops::cpu {

template <class T>
class ConvTile {
 public:
  ConvTile(const ConvProblem& problem, const Matrix& x, const GateRows& gates, int rows)
      : plan_(problem.plan),
        x_(x),
        gates_(gates),
        panel_(problem.plan, problem.layout),
        schedule_(problem, rows),
        row_(plan_.row_numbers),
        x_rows_(static_cast<size_t>(rows * x.cols)),
        sums_(plan_.registers.size() * static_cast<size_t>(rows) * kPairs) {}

  // Makes the panel of rows j .. of y, unless it is the one at hand.
  void load(const Matrix& y, const GateRows& gates, int64_t j) {
    if (j != loaded_) {
      panel_.load(y, gates, j);
      loaded_ = j;
    }
  }

  // results[r * kPairs + pair] for rows i + r of x.
  void run(int64_t i, int rows, T* results) {
    first_row_ = i;
    load_rows(i, rows);
    for (const Segment& s : plan_.segments) {
      open_sinks(s, rows);
      if (s.cyclic()) {
        visit(s, rows, {0, 0}, {s.range.y, s.range.x});
      } else {
        visit(s, rows, {-s.range.y, -s.range.x}, {s.range.y, s.range.x});
      }
      close_sinks(s, rows);
    }
    for (int r = 0; r < rows; ++r) {
      std::copy_n(schedule_.stored(plan_.registers[plan_.result], r), kPairs, results + r * kPairs);
    }
  }

 private:
  void load_rows(int64_t i, int rows) {
    for (int r = 0; r < rows; ++r) {
      const T* row = reinterpret_cast<const T*>(x_.data) + (i + r) * x_.row_stride;
      for (int64_t c = 0; c < x_.cols; ++c) {
        x_rows_[r * x_.cols + c] = row[c * x_.col_stride];
      }
    }
  }

  void visit(const Segment& s, int rows, Shift first, Shift last) {
    for (int y = first.y; y <= last.y; y += s.step.y) {
      for (int x = first.x; x <= last.x; x += s.step.x) {
        schedule_.prepare(s, {y, x});
        for (const Step<T>& step : schedule_.steps()) {
          compute(step, rows);
        }
        for (const SinkStep<T>* sink = schedule_.begin_sinks(); sink != schedule_.end_sinks(); ++sink) {
          feed(*sink, rows);
        }
      }
    }
  }

  MaskView mask(int index) const {
    return panel_.mask(index, gates_.row(first_row_), gates_.stride());
  }

  void compute(const Step<T>& step, int rows) {
    const Instruction& code = plan_.registers[step.index].code;
    const T scale = static_cast<T>(code.scale), constant = static_cast<T>(code.constant);
    switch (code.op) {
      case ConvOp::input:
        return kernels_.input(
            {rows, x_rows_.data() + code.first, panel_.pixels(step.index), x_.cols, code.channels, code.out.area(),
             code.out.x, scale, step.out});
      case ConvOp::add:
        return kernels_.add({rows, step.src, step.src2, step.out, scale, static_cast<T>(code.scale2), constant});
      case ConvOp::constant:
        return fill_constant(code, step.out, rows);
      default:
        return kernels_.box(
            {rows, step.src, step.out, window_y(code), window_x(code), code.circular, mask(step.index), code.out.x,
             scale, constant, row_.data()});
    }
  }

  static void fill_constant(const Instruction& code, const Maps<T>& out, int rows) {
    const bool on = !(code.same_row && out.y.delta != 0) && !(code.same_column && out.x.delta != 0);
    for (int p = out.y.begin; p < out.y.end; ++p) {
      for (int i = 0; i < rows; ++i) {
        std::fill_n(out.row(p) + i * out.next, int64_t{out.x.count()} * kPairs, on ? static_cast<T>(code.scale) : T(0));
      }
    }
  }

  void feed(const SinkStep<T>& step, int rows) {
    const Register& r = plan_.registers[step.index];
    if (r.code.total()) {
      kernels_.total(rows, step.src, sums(step.index, 0));
      return;
    }
    kernels_.pool(
        {rows, step.src, step.y.data(), step.x.data(), static_cast<int>(step.y.size()), static_cast<int>(step.x.size()),
         r.code.out.y, r.code.out.x, r.code.kernel.x, static_cast<int>(r.code.kernel.area()), mask(step.index),
         schedule_.stored(r, 0), plan_.store_numbers});
  }

  double* sums(int index, int row) {
    return sums_.data() + (index * (sums_.size() / plan_.registers.size()) + static_cast<size_t>(row) * kPairs);
  }

  void open_sinks(const Segment& s, int rows) {
    for (const int index : s.sinks) {
      for (int row = 0; row < rows; ++row) {
        const Register& r = plan_.registers[index];
        std::fill_n(schedule_.stored(r, row), r.numbers(), T(0));
        std::fill_n(sums(index, row), kPairs, 0.0);
      }
    }
  }

  void close_sinks(const Segment& s, int rows) {
    for (const int index : s.sinks) {
      for (int row = 0; row < rows; ++row) {
        close(index, row);
      }
    }
  }

  // Scales what a sink has summed.
  void close(int index, int row) {
    const Register& r = plan_.registers[index];
    const std::vector<double>& w = r.code.weights;
    T* to = schedule_.stored(r, row);
    if (r.code.total()) {
      const double scale = r.code.scale * (w.empty() ? 1.0 : w[0] * w[0]);
      for (int pair = 0; pair < kPairs; ++pair) {
        to[pair] = static_cast<T>(sums(index, row)[pair] * scale);
      }
      return;
    }
    const Extent size = r.code.out;
    for (int shift = 0; shift < size.area(); ++shift) {
      for (int p = 0; p < size.area(); ++p, to += kPairs) {
        const int q = (p / size.x + shift / size.x) % size.y * size.x + (p + shift) % size.x;
        const T scale = static_cast<T>(w.empty() ? r.code.scale : r.code.scale * w[p] * w[q]);
        for (int pair = 0; pair < kPairs; ++pair) {
          to[pair] *= scale;
        }
      }
    }
  }

  const Plan& plan_;
  Matrix x_;
  GateRows gates_;
  const ConvGramKernels<T>& kernels_ = conv_gram_kernels<T>();
  Panel<T> panel_;
  Schedule<T> schedule_;
  LineBuffer<T> row_;
  std::vector<T> x_rows_;
  std::vector<double> sums_;  // of sinks that sum all pixels: [register][row][pair]
  int64_t loaded_ = -1, first_row_ = 0;
};

}  // namespace gatedops::cpu
