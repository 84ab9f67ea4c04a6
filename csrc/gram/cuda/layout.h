// Where gates and values lie: the operands of a pipeline stage in shared memory, the accumulators of the tensor cores
// in registers, and a finished tile in shared memory.
#pragma once

#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

// An operand of a stage has rows of 128 bytes (1024 gates) in chunks of 16 bytes. Chunk c of row r is at place
// c ^ (r % 8), which is TMA's 128-byte swizzle. A matrix load or a wgmma core matrix reads one chunk of eight rows at a
// time, and these touch each of the 32 banks once.
constexpr int kChunkWords = 4, kChunkBytes = 16;
constexpr int kRowChunks = 8, kRowBytes = 128;
constexpr int kStageWords = 32;  // A stage has this many words of a layer.
constexpr int kStepWords = 8;    // A tensor-core step takes this many words: K = 256 gates, or 32 bytes.
constexpr int kStageSteps = kStageWords / kStepWords;

static_assert(kRowBytes == kRowChunks * kChunkBytes && kStageWords * 4 == kRowBytes);

GATEDOPS_HOST_DEVICE constexpr uint32_t operand_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row % 8)) * kChunkBytes);
}

// Returns how many tensor-core steps cover `words` words.
GATEDOPS_HOST_DEVICE constexpr int steps_of(int words) {
  return (words + kStepWords - 1) / kStepWords;
}

// The functions below say what each lane holds of mma.m16n8k256 (PTX ISA, "Matrix Fragments for mma.m16n8k256"), and
// which row and chunk it gives to ldmatrix.x4, so that the four matrices of 8 x 16 bytes end up there.
struct Place {
  int row, col;
};

// A has 16 rows x 2 chunks. Lanes 0-7 point at rows 0-7 of the low chunk, lanes 8-15 at rows 8-15 of it, and lanes
// 16-31 at the high chunk.
GATEDOPS_HOST_DEVICE constexpr int a_row(int lane) {
  return lane % 16;
}
GATEDOPS_HOST_DEVICE constexpr int a_chunk(int lane) {
  return lane / 16;
}

// B has two blocks of 8 columns x 2 chunks. Lanes point at the low and the high chunk of the first block, then of the
// second.
GATEDOPS_HOST_DEVICE constexpr int b_row(int lane) {
  return lane % 8 + lane / 16 * 8;
}
GATEDOPS_HOST_DEVICE constexpr int b_chunk(int lane) {
  return lane / 8 % 2;
}

// Returns the place of register i (0-3) in the 16 x 8 accumulator.
GATEDOPS_HOST_DEVICE constexpr Place accumulator_place(int lane, int i) {
  return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// Returns the place of register i in a warp's share, 16 rows x N columns, of a wgmma.m64nN accumulator. It consists of
// the same 16 x 8 blocks side by side.
GATEDOPS_HOST_DEVICE constexpr Place wide_accumulator_place(int lane, int i) {
  const Place place = accumulator_place(lane, i % 4);
  return {place.row, i / 4 * 8 + place.col};
}

// In a finished tile rows follow each other, and inside a row columns change places. The order is such that no two
// lanes of a warp use the same bank (of 4 bytes) when they store their accumulators, read a row, or read a column.

// Returns what is XORed to the column in row `row`. Lane 4 g + t stores to row g (or g + 8, of 16) and to column 2 t
// (or 2 t + 1, of 8). t is in bits 1 and 2 of the bank, so the bits of g go to the others. Over 32 rows every bank
// comes once.
GATEDOPS_HOST_DEVICE constexpr int tile_swizzle(int row) {
  return (row & 1) | (row >> 1 & 3) << 3 | (row >> 3 & 3) << 1;
}

// A lane takes 2 or 4 elements of a line of the tile at once. It reads those of a column one by one, element e ^ turn
// as the e-th. If all lanes read in the same order, some would use the same bank. Half a warp reads doubles at a time,
// for which there are half as many banks.
GATEDOPS_HOST_DEVICE constexpr int column_turn(int lane, int elements) {
  return elements == 4 ? lane >> 3 : lane >> 1 & 1;
}

// Returns which element of the tile's memory is (row, col). The tile has kTile columns, a multiple of 32.
template <int kTile>
GATEDOPS_HOST_DEVICE constexpr int tile_offset(int row, int col) {
  static_assert(kTile % 32 == 0);
  return row * kTile + (col ^ tile_swizzle(row));
}

}  // namespace gatedops::cuda
