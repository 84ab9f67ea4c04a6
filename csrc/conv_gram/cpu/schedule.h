// What there is to compute at one displacement, and where the maps lie.
#pragma once

#include <cstdlib>

#include "axes.h"

namespace gatedops::cpu {

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

  const ConvProblem& problem_;
  const Plan& plan_;
  LineBuffer<T> slots_, store_;
  std::vector<char> needed_;
  std::vector<Step<T>> steps_;
  std::vector<SinkStep<T>> sinks_;  // the first used_sinks_ are this displacement's
  int used_sinks_ = 0;
};

}  // namespace gatedops::cpu
