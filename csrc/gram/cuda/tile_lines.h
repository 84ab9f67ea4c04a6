// Rows and columns of a finished tile in shared memory, as a warp takes them: a whole line at a time, 16 bytes a lane.
#pragma once

#include "core/cuda/instructions.h"
#include "staged_layout.h"

namespace gatedops::cuda {

template <class Value, int kTile>
struct TileLines {
  static constexpr int kTogether = 16 / static_cast<int>(sizeof(Value));
  static_assert(kTile == 32 * kTogether, "a warp takes a line at once");
  using Elements = Together<Value, kTogether>;

  // Gives elements [kTogether * lane, kTogether * (lane + 1)) of row r. The swizzle moves them together, and changes
  // their order.
  static __device__ __forceinline__ Elements of_row(const Value* values, int r, int lane) {
    const int swizzle = staged_swizzle(r);
    Elements read;
    load_together(read, values + r * kTile + (kTogether * lane ^ (swizzle & -kTogether)));
    return reordered(read, swizzle);
  }

  // Gives the same elements of column c.
  static __device__ __forceinline__ Elements of_column(const Value* values, int c, int lane) {
    const int turn = column_turn(lane, kTogether);
    Elements read;
#pragma unroll
    for (int e = 0; e < kTogether; ++e) {
      read.value[e] = values[staged_offset<kTile>(kTogether * lane + (e ^ turn), c)];
    }
    return reordered(read, turn);
  }

 private:
  // Element e is at place e ^ bits of `read`.
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

}  // namespace gatedops::cuda
