// Runs a plan on some rows of x against one panel of kPairs rows of y: segment by segment, displacement by
// displacement, register by register. One thread; memory for one x at a time apart from the stored registers.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "conv_gram_panel.h"

namespace gatedops::cpu {

// Pixels of one axis whose partners lie `delta` further on.
inline Axis axis_at(int size, int delta, bool cyclic) {
  if (cyclic) {
    const int shift = modulo(delta, size);
    return {0, size - shift, size, shift, size};
  }
  const int begin = std::min(size, std::max(0, -delta)), end = std::max(begin, std::min(size, size - delta));
  return {begin, end, end, delta, size};
}

// The windows that each pixel of one axis falls into: (output pixel, place in the window).
class Windows {
 public:
  Windows(int in, int out, const BoxAxis& window) : of_(static_cast<size_t>(in)), out_(out) {
    for (int p = 0; p < out; ++p) {
      for (int k = 0; k < window.kernel; ++k) {
        const int64_t q = int64_t{p} * window.stride + int64_t{k} * window.dilation - window.pad;
        if (q >= 0 && q < in) {
          of_[static_cast<size_t>(q)].push_back({p, k});
        }
      }
    }
  }

  void taps(const Axis& axis, std::vector<PoolTap>& taps) const {
    taps.clear();
    for (int q = axis.begin; q < axis.end; ++q) {
      for (const auto& [p, k] : of_[q]) {
        for (const auto& [p_y, k_y] : of_[axis.partner(q)]) {
          taps.push_back({q, p, modulo(p_y - p, out_), p_y, k, k_y});
        }
      }
    }
  }

 private:
  std::vector<std::vector<std::pair<int, int>>> of_;
  int out_;
};

inline BoxAxis window_y(const Instruction& i) {
  return {i.kernel.y, i.stride.y, i.pad.y, i.dilation.y};
}
inline BoxAxis window_x(const Instruction& i) {
  return {i.kernel.x, i.stride.x, i.pad.x, i.dilation.x};
}

struct SinkWindows {
  Windows y, x;
  explicit SinkWindows(const Instruction& i) : y(i.in.y, i.out.y, window_y(i)), x(i.in.x, i.out.x, window_x(i)) {}
};

// What all tiles of a call share.
struct ConvProblem {
  explicit ConvProblem(const std::vector<Instruction>& program) : plan(program), layout(plan) {
    for (const Register& r : plan.registers) {
      windows.emplace_back(r.code.sink() && !r.code.total() ? r.code : Instruction{});
    }
  }

  Plan plan;
  PanelLayout layout;
  std::vector<SinkWindows> windows;  // of each register, empty but for pools
};

template <class T>
class ConvTile {
 public:
  ConvTile(const ConvProblem& problem, const Matrix& x, const GateRows& gates, int rows)
      : problem_(problem),
        plan_(problem.plan),
        x_(x),
        gates_(gates),
        panel_(problem.plan, problem.layout),
        slots_(rows * plan_.slots * slot_numbers()),
        store_(rows * plan_.store_numbers),
        row_(plan_.row_numbers),
        x_rows_(static_cast<size_t>(rows * x.cols)),
        sums_(plan_.registers.size() * static_cast<size_t>(rows) * kPairs),
        needed_(plan_.registers.size()) {}

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
    const T* result = store_.data() + plan_.registers[plan_.result].place;
    for (int r = 0; r < rows; ++r) {
      std::copy_n(result + r * plan_.store_numbers, kPairs, results + r * kPairs);
    }
  }

 private:
  struct Step {
    int index;  // of the register
    Maps<T> out, src, src2;
  };
  struct SinkStep {
    int index;
    Maps<T> src;
    std::vector<PoolTap> y, x;
  };

  // Slots are set apart by more than their size: equal addresses modulo 4096 would stall loads behind stores.
  int64_t slot_numbers() const {
    return plan_.slot_numbers + 5 * kPairs;
  }

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
        prepare(s, {y, x});
        for (const Step& step : steps_) {
          compute(step, rows);
        }
        for (int k = 0; k < used_sinks_; ++k) {
          feed(sinks_[k], rows);
        }
      }
    }
  }

  // --- what there is to do at a displacement ------------------------------------------------------------------------

  static bool divides(const Register& r, Shift at) {
    return at.y % r.lattice.y == 0 && at.x % r.lattice.x == 0;
  }
  static Shift own_shift(const Register& r, Shift at) {
    return {at.y / r.lattice.y, at.x / r.lattice.x};
  }
  static bool exists(const Register& r, const Segment& s, Shift at) {
    return divides(r, at) &&
           (s.cyclic() || (std::abs(at.y / r.lattice.y) < r.code.out.y && std::abs(at.x / r.lattice.x) < r.code.out.x));
  }

  void prepare(const Segment& s, Shift at) {
    std::fill(needed_.begin(), needed_.end(), 0);
    used_sinks_ = 0;
    for (const int index : s.sinks) {
      prepare_sink(s, index, at);
    }
    for (auto index = s.local.rbegin(); index != s.local.rend(); ++index) {
      const Register& r = plan_.registers[*index];
      if (needed_[*index] || (r.stored && exists(r, s, at))) {
        needed_[*index] = 1;
        need(r.code.src);
        need(r.code.src2);
      }
    }
    steps_.clear();
    for (const int index : s.local) {
      const Register& r = plan_.registers[index];
      if (needed_[index] && exists(r, s, at)) {
        const Shift shift = own_shift(r, at);
        const Shift from{shift.y * r.code.stride.y, shift.x * r.code.stride.x};
        const bool wraps = s.cyclic() || r.code.circular;
        steps_.push_back(
            {index, maps_of(index, shift, s.cyclic()), maps_of(r.code.src, from, wraps),
             maps_of(r.code.src2, from, wraps)});
      }
    }
  }

  void need(int src) {
    if (src >= 0) {
      needed_[src] = 1;
    }
  }

  void prepare_sink(const Segment& s, int index, Shift at) {
    const Instruction& code = plan_.registers[index].code;
    const Register& src = plan_.registers[code.src];
    if (!exists(src, s, at) || (code.op == ConvOp::trace && (at.y != 0 || at.x != 0))) {
      return;
    }
    if (used_sinks_ == static_cast<int>(sinks_.size())) {
      sinks_.emplace_back();
    }
    SinkStep& step = sinks_[used_sinks_];
    step.index = index;
    step.src = maps_of(code.src, own_shift(src, at), s.cyclic());
    if (!code.total()) {
      problem_.windows[index].y.taps(step.src.y, step.y);
      problem_.windows[index].x.taps(step.src.x, step.x);
      if (step.y.empty() || step.x.empty()) {
        return;
      }
    }
    needed_[code.src] = 1;
    ++used_sinks_;
  }

  // The maps of a register at a displacement of its own pixels.
  Maps<T> maps_of(int index, Shift shift, bool cyclic) {
    if (index < 0) {
      return {};
    }
    const Register& r = plan_.registers[index];
    const Extent& size = r.code.out;
    Maps<T> m;
    m.y = axis_at(size.y, shift.y, cyclic);
    m.x = axis_at(size.x, shift.x, cyclic);
    if (r.stored) {
      const int64_t displacement = int64_t{modulo(shift.y, size.y)} * size.x + modulo(shift.x, size.x);
      const int64_t pixel = int64_t{m.y.begin} * size.x + m.x.begin;
      m.pitch = int64_t{size.x} * kPairs;
      m.data = store_.data() + r.place + (displacement * size.area() + pixel) * kPairs;
      m.next = plan_.store_numbers;
    } else {
      m.pitch = int64_t{m.x.count()} * kPairs;
      m.next = plan_.slots * slot_numbers();
      m.data = slots_.data() + r.place * slot_numbers();
    }
    return m;
  }

  // --- doing it -----------------------------------------------------------------------------------------------------

  MaskView mask(int index) const {
    return panel_.mask(index, gates_.row(first_row_), gates_.stride());
  }

  void compute(const Step& step, int rows) {
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

  void feed(const SinkStep& step, int rows) {
    const Register& r = plan_.registers[step.index];
    if (r.code.total()) {
      kernels_.total(rows, step.src, sums(step.index, 0));
      return;
    }
    kernels_.pool(
        {rows, step.src, step.y.data(), step.x.data(), static_cast<int>(step.y.size()), static_cast<int>(step.x.size()),
         r.code.out.y, r.code.out.x, r.code.kernel.x, static_cast<int>(r.code.kernel.area()), mask(step.index),
         stored(r, 0), plan_.store_numbers});
  }

  double* sums(int index, int row) {
    return sums_.data() + (index * (sums_.size() / plan_.registers.size()) + static_cast<size_t>(row) * kPairs);
  }
  T* stored(const Register& r, int row) {
    return store_.data() + row * plan_.store_numbers + r.place;
  }

  void open_sinks(const Segment& s, int rows) {
    for (const int index : s.sinks) {
      for (int row = 0; row < rows; ++row) {
        const Register& r = plan_.registers[index];
        std::fill_n(stored(r, row), r.numbers(), T(0));
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
    T* to = stored(r, row);
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

  const ConvProblem& problem_;
  const Plan& plan_;
  Matrix x_;
  GateRows gates_;
  const ConvGramKernels<T>& kernels_ = conv_gram_kernels<T>();
  Panel<T> panel_;
  LineBuffer<T> slots_, store_, row_;
  std::vector<T> x_rows_;
  std::vector<double> sums_;  // of sinks that sum all pixels: [register][row][pair]
  std::vector<char> needed_;
  std::vector<Step> steps_;
  std::vector<SinkStep> sinks_;
  int used_sinks_ = 0;
  int64_t loaded_ = -1, first_row_ = 0;
};

}  // namespace gatedops::cpu
