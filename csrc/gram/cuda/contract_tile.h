// A Gram times v, tile by tile. A finished tile in shared memory is not written, but multiplied by columns of v
// (ContractTile). A kernel of its own (sum_partials) adds up the partial products of all tiles of a band.
#pragma once

#include "arithmetic.h"
#include "core/cuda/instructions.h"
#include "layout.h"
#include "matvec_bands.h"
#include "walk.h"

namespace gatedops::cuda {

// Computes K_ij v_j for the rows of a tile, and K_ij^T v_i for its columns if the tile also stands for its mirror
// image. Each tile writes these sums to a place of its own (Contraction). Their order depends on the shape alone.
struct ContractTile {
  static constexpr bool kByRows = false;
  // A thread takes this many columns of v at a time, and has a sum in registers for each.
  static constexpr int kColumns = 12, kFewColumns = 4;
  static constexpr int kTerms = 4;  // It adds this many terms to each sum at a time.

  // Returns how many elements of shared memory v takes on both sides of a tile.
  static constexpr int scratch(int tile) {
    return 2 * tile * kColumns;
  }

  // Threads 0 .. kThreads - 1 call this together. `values` is the staged tile, which is complete on entry. `scratch`
  // has scratch(kTile) elements and begins at a 16-byte boundary. `wait` is the barrier of the threads.
  template <int kThreads, int kTile, class Value, class Wait>
  static __device__ __forceinline__ void run(
      const GramProblem& p, const TileRect& tile, int, const Value* values, Value* scratch, int thread,
      const Wait& wait) {
    if (tile.rows == 0 || tile.cols == 0) {
      return;
    }
    const bool mirrored = p.schedule.symmetric && !tile.diagonal;
    const int warp = thread / 32, lane = thread % 32;
    for (int first = 0; first < p.contraction.columns; first += kColumns) {
      const int columns = min(kColumns, p.contraction.columns - first);
      load<kThreads, Value>(p, tile.j, tile.cols, first, columns, scratch, thread);
      load<kThreads, Value>(p, tile.i, mirrored ? tile.rows : 0, first, columns, scratch + kTile * kColumns, thread);
      wait();
      for (int task = warp; task < kTile / 32 * (mirrored ? 2 : 1); task += kThreads / 32) {
        const int line = task % (kTile / 32) * 32 + lane;
        if (task < kTile / 32) {
          sum<kTile, true>(p.contraction, tile, values, scratch, line, first, columns);
        } else {
          sum<kTile, false>(p.contraction, tile, values, scratch + kTile * kColumns, line, first, columns);
        }
      }
      wait();  // Next v is overwritten or, after the last columns, the tile.
    }
  }

 private:
  template <int kTile>
  static __device__ __forceinline__ int64_t part_of(const Contraction& c, const TileRect& tile) {
    return ((tile.i / kTile - c.first_row) * c.stride + tile.j / kTile) * c.columns * kTile;
  }

  // Loads `rows` rows of v from `row` on, kColumns elements each. Missing elements are zeros, also up to a multiple of
  // kTerms rows.
  template <int kThreads, class Value>
  static __device__ __forceinline__ void load(
      const GramProblem& p, int64_t row, int rows, int first, int columns, Value* to, int thread) {
    const Value* v = static_cast<const Value*>(p.contraction.v) + row * p.contraction.columns + first;
    for (int at = thread; at < (rows + kTerms - 1) / kTerms * kTerms * kColumns; at += kThreads) {
      const int column = at % kColumns, line = at / kColumns;
      to[at] = line < rows && column < columns ? v[int64_t{line} * p.contraction.columns + column] : Value(0);
    }
  }

  // Computes K_ij v_j for row `line` if kAcross, else K_ij^T v_i for column `line`, with columns [first, first +
  // columns) of v.
  template <int kTile, bool kAcross, class Value>
  static __device__ __forceinline__ void sum(
      const Contraction& c, const TileRect& tile, const Value* values, const Value* v, int line, int first,
      int columns) {
    Value* part = static_cast<Value*>(kAcross ? c.rows : c.cols) + part_of<kTile>(c, tile) + first * kTile + line;
    const int terms = kAcross ? tile.cols : tile.rows;
    const bool wanted = line < (kAcross ? tile.rows : tile.cols);
    if (columns <= kFewColumns) {
      sum_line<kTile, kAcross, kFewColumns>(values, v, line, terms, wanted ? columns : 0, part);
    } else {
      sum_line<kTile, kAcross, kColumns>(values, v, line, terms, wanted ? columns : 0, part);
    }
  }

  // Lanes have neighbouring lines, and all read the same row of v. Values outside the problem are products of counts
  // of 0, which are finite.
  template <int kTile, bool kAcross, int kUsed, class Value>
  static __device__ __forceinline__ void sum_line(
      const Value* values, const Value* v, int line, int terms, int columns, Value* part) {
    struct alignas(16) RowOfV {
      Value v[kUsed];
    };
    Value sums[kUsed] = {};
#pragma unroll 2
    for (int t = 0; t < terms; t += kTerms) {
      const Value* group = kAcross ? values + line * kTile : values + t * kTile;
      const int place = kAcross ? t ^ tile_swizzle(line) : line ^ tile_swizzle(t);
      // u and t have no bits in common, so their swizzles can be applied one by one.
#pragma unroll
      for (int u = 0; u < kTerms; ++u) {
        const Value value = kAcross ? group[place ^ u] : group[u * kTile + (place ^ tile_swizzle(u))];
        const RowOfV row = *reinterpret_cast<const RowOfV*>(v + (t + u) * kColumns);
#pragma unroll
        for (int c = 0; c < kUsed; ++c) {
          sums[c] = multiplied_added(value, row.v[c], sums[c]);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kUsed; ++c) {
      if (c < columns) {
        part[c * kTile] = sums[c];
      }
    }
  }
};

// Adds up the sums that ContractTile wrote for each tile of a band. The order is always the same, so that a product has
// the same bits on every run, and on every GPU that runs the same kernel.
//
// Warp s of a block adds terms s, s + kSlices, ... of 32 rows in one column; the first warp adds the slices.
template <class Value, int kTile>
struct PartialSum {
  static constexpr int kSlices = 8, kThreads = 32 * kSlices;
  static constexpr int kSharedBytes = kThreads * static_cast<int>(sizeof(Value));

  // Returns the units of work, one for a block at a time: one for each column of v and each group of 32 rows, in every
  // row of tiles that the band touches.
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
      // The first row of tiles of the band that lies below this one.
      const int64_t above = tile + 1 > p.parts.first_row ? tile + 1 : p.parts.first_row;
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
