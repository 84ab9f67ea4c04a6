// Axes of maps at a displacement, and the windows of sinks along them.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "panel.h"

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

}  // namespace gatedops::cpu
