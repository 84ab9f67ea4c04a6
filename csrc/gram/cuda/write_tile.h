// Writes a finished tile from shared memory: its rows, and its columns too if it also stands for its mirror image. A
// symmetric output is read (`times`) and computed only on and below the diagonal, so that both halves get the same bits
// whatever was in them.
#pragma once

#include <type_traits>

#include "arithmetic.h"
#include "core/cuda/instructions.h"
#include "layout.h"
#include "walk.h"

namespace gatedops::cuda {

// Reads rows and columns of a finished tile. A warp takes a whole line at a time, and each of its lanes 16 bytes.
template <class Value, int kTile>
struct TileLines {
  static constexpr int kTogether = 16 / static_cast<int>(sizeof(Value));
  static_assert(kTile == 32 * kTogether, "a warp takes a line at once");
  using Elements = Together<Value, kTogether>;

  // Returns elements [kTogether * lane, kTogether * (lane + 1)) of row r. The swizzle moves them together and changes
  // their order.
  static __device__ __forceinline__ Elements of_row(const Value* values, int r, int lane) {
    const int swizzle = tile_swizzle(r);
    Elements read;
    load_together(read, values + r * kTile + (kTogether * lane ^ (swizzle & -kTogether)));
    return reordered(read, swizzle);
  }

  // Returns the same elements of column c.
  static __device__ __forceinline__ Elements of_column(const Value* values, int c, int lane) {
    const int turn = column_turn(lane, kTogether);
    Elements read;
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      read.value[e] = values[tile_offset<kTile>(kTogether * lane + (e ^ turn), c)];
    }
    return reordered(read, turn);
  }

 private:
  // Undoes a swizzle: element e is at place e ^ bits of `read`.
  static __device__ __forceinline__ Elements reordered(const Elements& read, int bits) {
    Elements found = read;
#pragma unroll
    for (int bit = 1; bit < kTogether; bit *= 2) {
      const Elements before = found;
#pragma unroll
      for (int e = 0; e < kTogether; ++e) {
        found.value[e] = (bits & bit) != 0 ? before.value[e ^ bit] : before.value[e];
      }
    }
    return found;
  }
};

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

// Returns the value of one pair as it is written, before its conversion to the output's type. `before` is the element
// that the output has.
template <class Out, class Value>
__device__ __forceinline__ Value finished(const GramOutput& out, Value value, Out before, int64_t i, int64_t j) {
  if (out.times) {
    value = multiplied(input_cast(before), value);
  }
  if (out.factor != nullptr) {
    value = static_cast<Value>(__dmul_rn(static_cast<double>(value), __dmul_rn(out.factor[i], out.y_factor[j])));
  }
  return value;
}

__device__ __forceinline__ int32_t measured(const GramProblem& p, int layer, int32_t both, int64_t i, int64_t j) {
  if (p.out.x_on == nullptr) {
    return both;
  }
  const int32_t on = p.out.x_on[layer * p.x.rows + i] + p.out.y_on[layer * p.y.rows + j];
  const int32_t differing = on - 2 * both;
  return p.out.differ ? differing : p.layers.layer[layer].gates - differing;
}

// Writes tiles to an output of type Out.
template <class Out>
struct WriteTile {
  static constexpr bool kByRows = false;
  // A lane reads kRows * kColumns elements of the output before it uses the first, to hide the latency of device
  // memory.
  static constexpr int kRows = 3, kColumns = 4;

  // Threads 0 .. kThreads - 1 call this together. `layer` is the layer whose counts are written, or 0 for a Gram.
  // `values` is the staged tile; it is complete on entry, and this function may change it. `wait` is the barrier of the
  // threads.
  template <int kThreads, int kTile, class Value, class Wait>
  static __device__ __forceinline__ void run(
      const GramProblem& p, const TileRect& tile, int layer, Value* values, Value*, int thread, const Wait& wait) {
    constexpr int kWarps = kThreads / 32;
    const int warp = thread / 32, lane = thread % 32;
    Out* out = static_cast<Out*>(p.out.data) + layer * p.out.plane_stride;
    const bool lines = takes_lines<kTile, Value>(p, tile, out);
    if (lines && is_plain(p)) {
#pragma unroll 4
      for (int r = warp; r < kTile; r += kWarps) {
        write_line(TileLines<Value, kTile>::of_row(values, r, lane), out, p, tile.i + r, tile.j, lane);
      }
    } else {
      for (int r = warp * kRows; r < tile.rows; r += kWarps * kRows) {
        for (int c = lane; c < tile.cols; c += 32 * kColumns) {
          write_patch<kTile>(p, tile, layer, values, out, r, c);
        }
      }
    }
    if (!p.schedule.symmetric) {
      return;
    }
    wait();
    if (lines) {
#pragma unroll 2
      for (int c = warp; c < kTile; c += kWarps) {
        write_line(TileLines<Value, kTile>::of_column(values, c, lane), out, p, tile.j + c, tile.i, lane);
      }
      return;
    }
    for (int c = warp; c < tile.cols; c += kWarps) {
      Out* row = out + (tile.j + c) * p.out.row_stride + tile.i;
#pragma unroll
      for (int r = 0; r < kTile; r += 32) {
        if (r + lane < tile.rows && (!tile.diagonal || r + lane > c)) {
          row[r + lane] = output_cast(values[tile_offset<kTile>(r + lane, c)], Out());
        }
      }
    }
  }

 private:
  // Tells whether values are written as they are.
  static __device__ __forceinline__ bool is_plain(const GramProblem& p) {
    return !p.out.times && p.out.factor == nullptr && (!std::is_same_v<Out, int32_t> || p.out.x_on == nullptr);
  }

  // Tells whether the tile is written in whole lines, each lane its elements at once. No part of the tile may be cut
  // off, and every line of the output must begin at a multiple of what a lane writes.
  template <int kTile, class Value>
  static __device__ __forceinline__ bool takes_lines(const GramProblem& p, const TileRect& tile, const Out* out) {
    constexpr int kTogether = TileLines<Value, kTile>::kTogether;
    return tile.rows == kTile && tile.cols == kTile && !tile.diagonal && p.out.row_stride % kTogether == 0 &&
           reinterpret_cast<uintptr_t>(out) % (kTogether * sizeof(Out)) == 0;
  }

  // Writes a line of the tile to row i of the output, from column j on.
  template <class Value, int kTogether>
  static __device__ __forceinline__ void write_line(
      const Together<Value, kTogether>& line, Out* out, const GramProblem& p, int64_t i, int64_t j, int lane) {
    Together<Out, kTogether> written;
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      written.value[e] = output_cast(line.value[e], Out());
    }
    store_together(out + i * p.out.row_stride + j + kTogether * lane, written);
  }

  // Writes kRows rows from r on, and of each row kColumns columns: c, c + 32, ...
  template <int kTile, class Value>
  static __device__ __forceinline__ void write_patch(
      const GramProblem& p, const TileRect& tile, int layer, Value* values, Out* out, int r, int c) {
    Out before[kRows][kColumns];
    each(tile, r, c, [&](int a, int b, int row, int col) {
      before[a][b] = p.out.times ? out[(tile.i + row) * p.out.row_stride + tile.j + col] : Out();
    });
    each(tile, r, c, [&](int a, int b, int row, int col) {
      Value& value = values[tile_offset<kTile>(row, col)];
      if constexpr (std::is_same_v<Out, int32_t>) {
        value = measured(p, layer, value, tile.i + row, tile.j + col);
      } else {
        value = finished(p.out, value, before[a][b], tile.i + row, tile.j + col);
      }
      out[(tile.i + row) * p.out.row_stride + tile.j + col] = output_cast(value, Out());
    });
  }

  template <class Use>
  static __device__ __forceinline__ void each(const TileRect& tile, int r, int c, const Use& use) {
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
#pragma unroll
      for (int b = 0; b < kColumns; ++b) {
        const int row = r + a, col = c + 32 * b;
        if (row < tile.rows && col < (tile.diagonal ? row + 1 : tile.cols)) {
          use(a, b, row, col);
        }
      }
    }
  }
};

}  // namespace gatedops::cuda
