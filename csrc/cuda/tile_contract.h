// Multiplies a finished tile that lies in shared memory with columns of v, instead of writing it: K_ij v_j for its
// rows, and K_ij^T v_i for its columns where it stands for its mirror image. Each tile has a place of its own for these
// sums (Contraction), which sum_partials adds up in an order that depends on the shape alone.
#pragma once

#include "instructions.h"
#include "layer_product.h"
#include "staged_layout.h"
#include "tile_rect.h"

namespace gatedops::cuda {

struct ContractTile {
  static constexpr bool kByRows = false;
  static constexpr int kColumns = 12, kFewColumns = 4;  // of v at a time: as many sums in registers

  // Elements of shared memory for v on both sides of a tile.
  static constexpr int scratch(int tile) {
    return 2 * tile * kColumns;
  }

  // Threads 0 .. kThreads - 1 call this together; values is the staged tile, complete on entry.
  // scratch holds scratch(kTile) elements, on a 16-byte boundary. `wait` is their barrier.
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
        const bool across = task < kTile / 32;
        const Side<Value> side{
            across, across ? tile.rows : tile.cols, across ? tile.cols : tile.rows,
            across ? scratch : scratch + kTile * kColumns};
        Value* part = static_cast<Value*>(across ? p.contraction.rows : p.contraction.cols) +
                      part_of<kTile>(p.contraction, tile) + first * kTile;
        const int line = task % (kTile / 32) * 32 + lane;
        if (columns <= kFewColumns) {
          sum_line<kFewColumns, kTile>(side, values, line, columns, part);
        } else {
          sum_line<kColumns, kTile>(side, values, line, columns, part);
        }
      }
      wait();  // before v is overwritten, and the tile after the last columns
    }
  }

 private:
  // A tile seen from its rows or from its columns: `lines` sums of `terms` each.
  template <class Value>
  struct Side {
    bool across;
    int lines, terms;
    const Value* v;
  };

  template <int kTile>
  static __device__ __forceinline__ int64_t part_of(const Contraction& c, const TileRect& tile) {
    return ((tile.i / kTile - c.first_row) * c.stride + tile.j / kTile) * c.columns * kTile;
  }

  // v of `rows` rows from `row` on, kColumns elements each.
  template <int kThreads, class Value>
  static __device__ __forceinline__ void load(
      const GramProblem& p, int64_t row, int rows, int first, int columns, Value* to, int thread) {
    const Value* v = static_cast<const Value*>(p.contraction.v) + row * p.contraction.columns + first;
    for (int at = thread; at < rows * kColumns; at += kThreads) {
      const int column = at % kColumns;
      to[at] = column < columns ? v[int64_t{at / kColumns} * p.contraction.columns + column] : Value(0);
    }
  }

  // Lanes have neighbouring lines, and all read one row of v.
  template <int kUsed, int kTile, class Value>
  static __device__ __forceinline__ void sum_line(
      const Side<Value>& side, const Value* values, int line, int columns, Value* part) {
    struct alignas(16) RowOfV {
      Value v[kUsed];
    };
    Value sums[kUsed] = {};
#pragma unroll 4
    for (int t = 0; t < side.terms; ++t) {
      const Value value = values[side.across ? staged_offset<kTile>(line, t) : staged_offset<kTile>(t, line)];
      const RowOfV row = *reinterpret_cast<const RowOfV*>(side.v + t * kColumns);
#pragma unroll
      for (int c = 0; c < kUsed; ++c) {
        sums[c] = multiplied_added(value, row.v[c], sums[c]);
      }
    }
    if (line < side.lines) {
#pragma unroll
      for (int c = 0; c < kUsed; ++c) {
        if (c < columns) {
          part[c * kTile + line] = sums[c];
        }
      }
    }
  }
};

}  // namespace gatedops::cuda
