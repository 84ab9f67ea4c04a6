// Adds up what ContractTile left for each tile of a band: always in the same order, so that a product has the same bits
// on every run, and on every GPU that runs the same kernel.
#pragma once

#include "core/cuda/instructions.h"
#include "matvec_bands.h"

namespace gatedops::cuda {

// Warp s of a block adds terms s, s + kSlices, ... of 32 rows in one column; the first warp adds the slices.
template <class Value, int kTile>
struct PartialSum {
  static constexpr int kSlices = 8, kThreads = 32 * kSlices;
  static constexpr int kSharedBytes = kThreads * static_cast<int>(sizeof(Value));

  // Blocks' worth of work: for every row of tiles that the band touches, its columns of v and groups of 32 rows.
  static GATEDOPS_HOST_DEVICE int64_t units(const PartialSums& p) {
    return (p.end_row - first_touched(p)) * p.parts.columns * (kTile / 32);
  }

  static __device__ __forceinline__ void run(const PartialSums& p, int64_t unit, Value* shared) {
    const int slice = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t line = unit % (kTile / 32) * 32 + lane;
    const int64_t column = unit / (kTile / 32) % p.parts.columns;
    const int64_t tile = first_touched(p) + unit / (kTile / 32) / p.parts.columns;
    const int64_t row = tile * kTile + line;
    const int64_t offset = column * kTile + line;
    Value sum = Value(0);
    if (row < p.rows) {
      const int64_t across = tile < p.parts.first_row ? 0 : p.symmetric ? tile + 1 : p.tile_cols;
      const int64_t above = tile + 1 > p.parts.first_row ? tile + 1 : p.parts.first_row;  // first of the band below it
      const int64_t terms = across + (p.symmetric ? p.end_row - above : 0);
#pragma unroll 4
      for (int64_t t = slice; t < terms; t += kSlices) {
        sum += t < across ? part(p, p.parts.rows, tile, t, offset)
                          : part(p, p.parts.cols, above + t - across, tile, offset);
      }
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (slice == 0 && row < p.rows) {
      Value* out = static_cast<Value*>(p.out) + row * p.parts.columns + column;
      Value total = tile < p.parts.first_row ? *out : Value(0);
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        total += shared[s * 32 + lane];
      }
      *out = total;
    }
    __syncthreads();
  }

 private:
  static GATEDOPS_HOST_DEVICE int64_t first_touched(const PartialSums& p) {
    return p.symmetric ? 0 : p.parts.first_row;
  }

  static __device__ __forceinline__ Value
  part(const PartialSums& p, const void* parts, int64_t row, int64_t col, int64_t offset) {
    const int64_t at = ((row - p.parts.first_row) * p.parts.stride + col) * p.parts.columns * kTile;
    return static_cast<const Value*>(parts)[at + offset];
  }
};

template <class Value, int kTile>
__global__ void __launch_bounds__(PartialSum<Value, kTile>::kThreads) sum_partials(const PartialSums p) {
  using Sum = PartialSum<Value, kTile>;
  auto* shared = reinterpret_cast<Value*>(shared_memory());
  for (int64_t unit = blockIdx.x; unit < Sum::units(p); unit += gridDim.x) {
    Sum::run(p, unit, shared);
  }
}

}  // namespace gatedops::cuda
