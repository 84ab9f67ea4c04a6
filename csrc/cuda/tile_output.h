// Writes a finished tile that lies in shared memory: its rows, and its columns too where it stands for its
// mirror image. A symmetric output is read (`times`) and computed on and below the diagonal only, so both halves
// have the same bits whatever was in them.
#pragma once

#include <type_traits>

#include "gram_problem.h"
#include "instructions.h"

namespace gatedops::cuda {

struct TileRect {
  int64_t i, j;  // first row and column
  int rows, cols;
  bool diagonal;  // of a symmetric problem: only the pairs on and below its diagonal count
};

template <int kTile>
__device__ __forceinline__ TileRect tile_rect(const GramProblem& p, TileIndex at) {
  const int64_t i = at.row * kTile, j = at.col * kTile;
  return {
      i, j, static_cast<int>(min(static_cast<int64_t>(kTile), p.x.rows - i)),
      static_cast<int>(min(static_cast<int64_t>(kTile), p.y.rows - j)), p.schedule.symmetric && at.row == at.col};
}

template <class Value>
__device__ __forceinline__ Value output_cast(Value value, Value) {
  return value;
}
__device__ __forceinline__ __nv_bfloat16 output_cast(float value, __nv_bfloat16) {
  return __float2bfloat16_rn(value);
}

__device__ __forceinline__ float input_cast(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <class Value>
__device__ __forceinline__ Value input_cast(Value value) {
  return value;
}

// The value of one pair as it is written, before its conversion to the output's type.
template <class Out, class Value>
__device__ __forceinline__ Value finished(const GramOutput& out, Value value, const Out* at, int64_t i, int64_t j) {
  if (out.times) {
    value = multiplied(input_cast(*at), value);
  }
  if (out.factor != nullptr) {
    value = static_cast<Value>(__dmul_rn(static_cast<double>(value), __dmul_rn(out.factor[i], out.y_factor[j])));
  }
  return value;
}

__device__ __forceinline__ int32_t agreeing(const GramProblem& p, int layer, int32_t both, int64_t i, int64_t j) {
  if (p.out.x_on == nullptr) {
    return both;
  }
  const int32_t on = p.out.x_on[layer * p.x.rows + i] + p.out.y_on[layer * p.y.rows + j];
  return p.layers.layer[layer].gates - on + 2 * both;
}

// Threads 0 .. kThreads - 1 call this together; values is the tile, kStride elements a row. `wait` is their barrier.
// layer: of the counts written; 0 for a Gram.
template <int kThreads, int kStride, class Out, class Value, class Wait>
__device__ __forceinline__ void write_tile(
    const GramProblem& p, const TileRect& tile, int layer, Value* values, int thread, const Wait& wait) {
  constexpr int kWarps = kThreads / 32;
  const int warp = thread / 32, lane = thread % 32;
  Out* out = static_cast<Out*>(p.out.data) + layer * p.out.plane_stride;
  wait();
  for (int r = warp; r < tile.rows; r += kWarps) {
    const int64_t i = tile.i + r;
    Out* row = out + i * p.out.row_stride + tile.j;
    const int end = tile.diagonal ? r + 1 : tile.cols;
#pragma unroll 4
    for (int c = lane; c < end; c += 32) {
      Value& value = values[r * kStride + c];
      if constexpr (std::is_same_v<Out, int32_t>) {
        value = agreeing(p, layer, value, i, tile.j + c);
      } else {
        value = finished(p.out, value, row + c, i, tile.j + c);
      }
      row[c] = output_cast(value, Out());
    }
  }
  if (!p.schedule.symmetric) {
    return;
  }
  wait();
  for (int c = warp; c < tile.cols; c += kWarps) {
    Out* row = out + (tile.j + c) * p.out.row_stride + tile.i;
#pragma unroll 4
    for (int r = lane + (tile.diagonal ? c / 32 * 32 : 0); r < tile.rows; r += 32) {
      if (!tile.diagonal || r > c) {
        row[r] = output_cast(values[r * kStride + c], Out());
      }
    }
  }
}

}  // namespace gatedops::cuda
