// Which lane holds what of mma.m16n8k256 (PTX ISA, "Matrix Fragments for mma.m16n8k256"), and where a lane
// points ldmatrix.x4 so that its four 8 x 16-byte matrices land there.
#pragma once

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

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

}  // namespace gatedops::cuda
