// Runs a tile: fills its panel, plans each displacement, and calls the kernels of the instruction set.
#include "tile.h"

#include <algorithm>
#include <cstdlib>

namespace gatedops::cpu {
namespace {

// Returns the pixels of one axis whose partners lie `delta` further on.
Axis axis_at(int size, int delta, bool cyclic) {
  if (cyclic) {
    const int shift = modulo(delta, size);
    return {0, size - shift, size, shift, size};
  }
  const int begin = std::min(size, std::max(0, -delta)), end = std::max(begin, std::min(size, size - delta));
  return {begin, end, end, delta, size};
}

Shift own_shift(const Register& r, Shift at) {
  return {at.y / r.lattice.y, at.x / r.lattice.x};
}

// Tells whether a register has pixels at a displacement of the segment.
bool exists(const Register& r, const Segment& s, Shift at) {
  if (at.y % r.lattice.y != 0 || at.x % r.lattice.x != 0) {
    return false;
  }
  const Shift own = own_shift(r, at);
  return s.cyclic() || (std::abs(own.y) < r.code.out.y && std::abs(own.x) < r.code.out.x);
}

template <class T>
void fill_constant(const Instruction& code, const Maps<T>& out, int rows) {
  const bool on = !(code.same_row && out.y.delta != 0) && !(code.same_column && out.x.delta != 0);
  for (int p = out.y.begin; p < out.y.end; ++p) {
    for (int i = 0; i < rows; ++i) {
      std::fill_n(out.row(p) + i * out.next, int64_t{out.x.count()} * kPairs, on ? static_cast<T>(code.scale) : T(0));
    }
  }
}

}  // namespace

template <class T>
void Panel<T>::load(const Matrix& x, const PackedRows& gates, int64_t j) {
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

// Turns (channels, pixels) of each row into (pixels, channels, kPairs).
template <class T>
void Panel<T>::load_pixels(const Matrix& x, const PanelPart& part, int64_t j) {
  T* to = numbers_.data() + part.at;
  for (int64_t pair = 0; pair < kPairs; ++pair) {
    const T* row = reinterpret_cast<const T*>(x.data) + (j + pair) * x.row_stride;
    for (int64_t c = 0; c < part.used; ++c) {
      for (int64_t p = 0; p < part.positions; ++p) {
        to[(p * part.used + c) * kPairs + pair] =
            j + pair < x.rows ? row[(part.first_y + c * part.positions + p) * x.col_stride] : T(0);
      }
    }
  }
}

template <class T>
void Panel<T>::load_words(const PackedRows& gates, const PanelPart& part, int64_t j) {
  uint32_t* to = words_.data() + part.at;
  for (int64_t pair = 0; pair < kPairs; ++pair) {
    const uint32_t* row = j + pair < gates.rows() ? gates.row(j + pair) + part.first_y : nullptr;
    for (int64_t p = 0; p < part.positions; ++p) {
      for (int64_t w = 0; w < part.used; ++w) {
        to[(p * part.used + w) * kPairs + pair] = row == nullptr ? 0 : row[p * part.stride + w];
      }
    }
  }
}

template <class T>
void Schedule<T>::prepare(const Segment& s, Shift at) {
  mark_needed(s, at);
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

// Marks the registers that sinks and stored registers of this displacement read, and prepares these sinks.
template <class T>
void Schedule<T>::mark_needed(const Segment& s, Shift at) {
  std::fill(needed_.begin(), needed_.end(), 0);
  used_sinks_ = 0;
  for (const int index : s.sinks) {
    prepare_sink(s, index, at);
  }
  for (auto index = s.local.rbegin(); index != s.local.rend(); ++index) {
    const Register& r = plan_.registers[*index];
    if (needed_[*index] || (r.stored && exists(r, s, at))) {
      needed_[*index] = 1;
      for (const int src : {r.code.src, r.code.src2}) {
        if (src >= 0) {
          needed_[src] = 1;
        }
      }
    }
  }
}

template <class T>
void Schedule<T>::prepare_sink(const Segment& s, int index, Shift at) {
  const Instruction& code = plan_.registers[index].code;
  const Register& src = plan_.registers[code.src];
  if (!exists(src, s, at) || (code.op == ConvOp::trace && (at.y != 0 || at.x != 0))) {
    return;
  }
  if (used_sinks_ == static_cast<int>(sinks_.size())) {
    sinks_.emplace_back();
  }
  SinkStep<T>& step = sinks_[used_sinks_];
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

// Returns the maps of a register at a displacement that counts its own pixels.
template <class T>
Maps<T> Schedule<T>::maps_of(int index, Shift shift, bool cyclic) {
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

template <class T>
void ConvTile<T>::run(int64_t i, int rows, T* results) {
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

template <class T>
void ConvTile<T>::load_rows(int64_t i, int rows) {
  for (int r = 0; r < rows; ++r) {
    const T* row = reinterpret_cast<const T*>(x_.data) + (i + r) * x_.row_stride;
    for (int64_t c = 0; c < x_.cols; ++c) {
      x_rows_[r * x_.cols + c] = row[c * x_.col_stride];
    }
  }
}

template <class T>
void ConvTile<T>::visit(const Segment& s, int rows, Shift first, Shift last) {
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

template <class T>
void ConvTile<T>::compute(const Step<T>& step, int rows) {
  const Instruction& code = plan_.registers[step.index].code;
  switch (code.op) {
    case ConvOp::input:
      return compute_input(step, rows);
    case ConvOp::add:
      return compute_add(step, rows);
    case ConvOp::constant:
      return fill_constant(code, step.out, rows);
    default:
      return compute_box(step, rows);
  }
}

template <class T>
void ConvTile<T>::compute_input(const Step<T>& step, int rows) {
  const Instruction& code = plan_.registers[step.index].code;
  InputArgs<T> args{};
  args.count = rows;
  args.x = x_rows_.data() + code.first;
  args.y = panel_.pixels(step.index);
  args.next = x_.cols;
  args.channels = code.channels;
  args.pixels = code.out.area();
  args.width = code.out.x;
  args.scale = static_cast<T>(code.scale);
  args.out = step.out;
  kernels_.input(args);
}

template <class T>
void ConvTile<T>::compute_add(const Step<T>& step, int rows) {
  const Instruction& code = plan_.registers[step.index].code;
  AddArgs<T> args{};
  args.count = rows;
  args.a = step.src;
  args.b = step.src2;
  args.out = step.out;
  args.scale_a = static_cast<T>(code.scale);
  args.scale_b = static_cast<T>(code.scale2);
  args.offset = static_cast<T>(code.constant);
  kernels_.add(args);
}

template <class T>
void ConvTile<T>::compute_box(const Step<T>& step, int rows) {
  const Instruction& code = plan_.registers[step.index].code;
  BoxArgs<T> args{};
  args.count = rows;
  args.in = step.src;
  args.out = step.out;
  args.y = window_y(code);
  args.x = window_x(code);
  args.circular = code.circular;
  args.mask = mask(step.index);
  args.width = code.out.x;
  args.scale = static_cast<T>(code.scale);
  args.offset = static_cast<T>(code.constant);
  args.row = row_.data();
  code.op == ConvOp::masked_box ? kernels_.masked_box(args) : kernels_.box(args);
}

template <class T>
void ConvTile<T>::feed(const SinkStep<T>& step, int rows) {
  const Register& r = plan_.registers[step.index];
  if (r.code.total()) {
    kernels_.total(rows, step.src, sums(step.index, 0));
    return;
  }
  PoolArgs<T> args{};
  args.count = rows;
  args.in = step.src;
  args.y = step.y.data();
  args.x = step.x.data();
  args.y_count = static_cast<int>(step.y.size());
  args.x_count = static_cast<int>(step.x.size());
  args.out_height = r.code.out.y;
  args.out_width = r.code.out.x;
  args.kernel_width = r.code.kernel.x;
  args.kernel_area = static_cast<int>(r.code.kernel.area());
  args.mask = mask(step.index);
  args.store = schedule_.stored(r, 0);
  args.store_next = plan_.store_numbers;
  r.code.op == ConvOp::resample ? kernels_.resample(args) : kernels_.pool(args);
}

template <class T>
void ConvTile<T>::open_sinks(const Segment& s, int rows) {
  for (const int index : s.sinks) {
    for (int row = 0; row < rows; ++row) {
      const Register& r = plan_.registers[index];
      std::fill_n(schedule_.stored(r, row), r.numbers(), T(0));
      std::fill_n(sums(index, row), kPairs, 0.0);
    }
  }
}

template <class T>
void ConvTile<T>::close_sinks(const Segment& s, int rows) {
  for (const int index : s.sinks) {
    for (int row = 0; row < rows; ++row) {
      close(index, row);
    }
  }
}

// Multiplies the sums of a sink by its scale and weights.
template <class T>
void ConvTile<T>::close(int index, int row) {
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

template class ConvTile<float>;
template class ConvTile<double>;

}  // namespace gatedops::cpu
