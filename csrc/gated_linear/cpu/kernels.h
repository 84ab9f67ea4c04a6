// The interface between the gated layers and the kernels of each instruction set, which work on a row of numbers. Rows
// are contiguous. All kernels of one RowKernels take rows of one dtype. Biases are summed and sigmoids are computed in
// float, or in double for float64 rows.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "core/cpu/dispatch.h"

namespace gatedops::cpu {

// The parameters of a row of soft gates, gain * sigmoid(beta q).
struct SoftRow {
  double beta, gain;
  int64_t width;
};

struct RowKernels {
  // Computes to = relu(from) as torch does: NaN and -0.0 stay. `to` may be `from`.
  void (*relu)(const void* from, void* to, int64_t width);
  // Also sets bit j of the ceil(width / 32) words to from[j] > 0.
  void (*relu_and_pack)(const void* from, void* to, int64_t width, uint32_t* words);
  // Sets to[j] to from[j] if bit j of words is on, else to exactly 0 even if from[j] is NaN. `to` may be `from`.
  void (*select)(const void* from, void* to, const uint32_t* words, int64_t width);
  // Does the same for `positions` contiguous numbers of each of `channels` planes. Plane c begins at element
  // c * plane_stride; the words of position p are at words + p * words_step.
  void (*select_planes)(
      const void* from, void* to, const uint32_t* words, int64_t words_step, int64_t positions, int64_t channels,
      int64_t plane_stride);
  // Computes to = a * b. `to` may be a or b.
  void (*multiply)(const void* a, const void* b, void* to, int64_t width);
  // Adds y to sums.
  void (*add)(const void* y, void* sums, int64_t width);
  // Computes z = v * gate(q) and, unless h is null, h = relu(q). z may be v, and h may be q.
  void (*soft_pair)(const SoftRow& row, const void* q, const void* v, void* h, void* z);
  // Computes dv = gz * gate(q) and, unless dq is null, dq = gz * v * gate'(q) + gh * relu'(q). If `linear`, the feature
  // network has no ReLU, and the last term is gh.
  void (*soft_pair_backward)(
      const SoftRow& row, bool linear, const void* q, const void* v, const void* gh, const void* gz, void* dq,
      void* dv);
};

using torch::headeronly::ScalarType;

struct GatedLinearKernels {
  RowKernels (*rows)(ScalarType dtype);
};

inline RowKernels row_kernels(ScalarType dtype) {
  return active_kernels<GatedLinearKernels>().rows(dtype);
}

}  // namespace gatedops::cpu
