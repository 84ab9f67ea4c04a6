// How a pipeline stage lies in shared memory: rows of 128 bytes (1024 gates) in 16-byte chunks, chunk c of
// row r in place c ^ (r % 8). That is TMA's 128-byte swizzle. Eight rows at one chunk, what a matrix load or a
// wgmma core matrix reads at a time, touch all 32 banks once.
#pragma once

#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

constexpr int kChunkWords = 4, kChunkBytes = 16;
constexpr int kRowChunks = 8, kRowBytes = 128;
constexpr int kStageWords = 32;  // of a layer, in one stage
constexpr int kStepWords = 8;    // one tensor-core step: K = 256 gates, or 32 bytes
constexpr int kStageSteps = kStageWords / kStepWords;

static_assert(kRowBytes == kRowChunks * kChunkBytes && kStageWords * 4 == kRowBytes);

GATEDOPS_HOST_DEVICE constexpr uint32_t stage_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kRowBytes + (chunk ^ (row % 8)) * kChunkBytes);
}

// Tensor-core steps that cover `words` words.
GATEDOPS_HOST_DEVICE constexpr int steps_of(int words) {
  return (words + kStepWords - 1) / kStepWords;
}

}  // namespace gatedops::cuda
