// Where an element of a finished tile lies in shared memory. Rows follow each other, and inside a row columns change
// places, so that no two lanes of a warp meet in a bank (of 4 bytes) when they store their accumulators, read a row, or
// read a column.
#pragma once

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

// Added to the bank of a column in row r. Lane 4 g + t stores to row g (or g + 8, of 16) and column 2 t (or 2 t + 1, of
// 8): t is in bits 1 and 2 of the bank, so the bits of g go to the others. Over 32 rows every bank comes once.
GATEDOPS_HOST_DEVICE constexpr int staged_swizzle(int row) {
  return (row & 1) | (row >> 1 & 3) << 3 | (row >> 3 & 3) << 1;
}

// A lane takes 2 or 4 elements of a line of the tile at once. It reads those of a column one by one, element e ^ turn
// in turn e: in the same order for all lanes, some would meet in a bank. Doubles are read by half a warp at a time,
// which has half as many banks.
GATEDOPS_HOST_DEVICE constexpr int column_turn(int lane, int elements) {
  return elements == 4 ? lane >> 3 : lane >> 1 & 1;
}

// Element of a tile of kTile columns, a multiple of 32.
template <int kTile>
GATEDOPS_HOST_DEVICE constexpr int staged_offset(int row, int col) {
  static_assert(kTile % 32 == 0);
  return row * kTile + (col ^ staged_swizzle(row));
}

}  // namespace gatedops::cuda
