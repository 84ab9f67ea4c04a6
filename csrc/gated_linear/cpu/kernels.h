// What gated layers do with a row of numbers: the interface between the ops and the kernels of each
// instruction set. Rows are contiguous. All kernels of one RowKernels take rows of one dtype; biases are
// summed and sigmoids computed in float (float64 rows: in double).
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

#include "core/cpu/dispatch.h"

namespace gatedops::cpu {

// A row of soft gates, gain * sigmoid(beta q).
struct SoftRow {
  double beta, gain;
  int64_t width;
};

struct RowKernels {
  // to = relu(from) as torch has it: NaN and -0.0 stay; to may be from.
  void (*relu)(const void* from, void* to, int64_t width);
  // The same, and bit j of words = from[j] > 0, in ceil(width / 32) words.
  void (*relu_and_pack)(const void* from, void* to, int64_t width, uint32_t* words);
  // to[j] = from[j] where bit j of words is on, else exactly 0, whatever from[j] is; to may be from.
  void (*select)(const void* from, void* to, const uint32_t* words, int64_t width);
  // The same for `positions` contiguous numbers of each of `channels` planes, plane c at c * plane_stride
  // elements; position p has its words at words + p * words_step.
  void (*select_planes)(
      const void* from, void* to, const uint32_t* words, int64_t words_step, int64_t positions, int64_t channels,
      int64_t plane_stride);
  // to = a * b; to may be a or b.
  void (*multiply)(const void* a, const void* b, void* to, int64_t width);
  // sums += y.
  void (*add)(const void* y, void* sums, int64_t width);
  // z = v * gate(q), and h = relu(q) unless h is null; z may be v, h may be q.
  void (*soft_pair)(const SoftRow& row, const void* q, const void* v, void* h, void* z);
  // dv = gz * gate(q), and unless dq is null dq = gz * v * gate'(q) + gh * relu'(q), the latter + gh where the
  // feature network is linear.
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
