// Where gates and values lie: the operands of a pipeline stage in shared memory, what the tensor cores make of them in
// registers, and a finished tile in shared memory.
#pragma once

#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

// A stage: rows of 128 bytes (1024 gates) in 16-byte chunks, chunk c of row r in place c ^ (r % 8). That is TMA's
// 128-byte swizzle. Eight rows at one chunk, what a matrix load or a wgmma core matrix reads at a time, touch all 32
// banks once.
constexpr int kChunkWords = 4, kChunkBytes = 16;
constexpr int kRowChunks = 8, kRowBytes = 128;
constexpr int kStageWords = 32;  // of a layer, in one stage
constexpr int kStepWords = 8;    // one tensor-core step: K = 256 gates, or 32 bytes
constexpr int kStageSteps = kStageWords / kStepWords;

static_assert(kRowBytes == kRowChunks * kChunkBytes && kStageWords * 4 == kRowBytes);

GATEDOPS_HOST_DEVICE constexpr uint32_t operand_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row % 8)) * kChunkBytes);
}

// Tensor-core steps that cover `words` words.
GATEDOPS_HOST_DEVICE constexpr int steps_of(int words) {
  return (words + kStepWords - 1) / kStepWords;
}

// Which lane holds what of mma.m16n8k256 (PTX ISA, "Matrix Fragments for mma.m16n8k256"), and where a lane points
// ldmatrix.x4 so that its four 8 x 16-byte matrices land there.
struct Place {
  int row, col;
};

// A, 16 rows x 2 chunks: lanes 0-7 point at rows 0-7 of the low chunk, then rows 8-15, then the high chunk.
GATEDOPS_HOST_DEVICE constexpr int a_row(int lane) {
  return lane % 16;
}
GATEDOPS_HOST_DEVICE constexpr int a_chunk(int lane) {
  return lane / 16;
}

// B, two blocks of 8 columns x 2 chunks: low and high chunk of the first block, then of the second.
GATEDOPS_HOST_DEVICE constexpr int b_row(int lane) {
  return lane % 8 + lane / 16 * 8;
}
GATEDOPS_HOST_DEVICE constexpr int b_chunk(int lane) {
  return lane / 8 % 2;
}

// Register i (0-3) of the 16 x 8 accumulator.
GATEDOPS_HOST_DEVICE constexpr Place accumulator_place(int lane, int i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// Register i of a warp's share, 16 rows x N columns, of a wgmma.m64nN accumulator: the same 16 x 8 blocks
// side by side.
GATEDOPS_HOST_DEVICE constexpr Place wide_accumulator_place(int lane, int i) {
  const Place place = accumulator_place(lane, i % 4);
  return {place.row, i / 4 * 8 + place.col};
}

// A finished tile: rows follow each other, and inside a row columns change places, so that no two lanes of a warp meet
// in a bank (of 4 bytes) when they store their accumulators, read a row, or read a column.

// Added to the bank of a column in row r. Lane 4 g + t stores to row g (or g + 8, of 16) and column 2 t (or 2 t + 1, of
// 8): t is in bits 1 and 2 of the bank, so the bits of g go to the others. Over 32 rows every bank comes once.
GATEDOPS_HOST_DEVICE constexpr int tile_swizzle(int row) {
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
GATEDOPS_HOST_DEVICE constexpr int tile_offset(int row, int col) {
  static_assert(kTile % 32 == 0);
  return row * kTile + (col ^ tile_swizzle(row));
}

}  // namespace gatedops::cuda
