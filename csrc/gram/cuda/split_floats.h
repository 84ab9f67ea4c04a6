// A float32 number as the sum of two TF32 numbers, what the tensor cores multiply, and a rest below 2^-22 of it.
#pragma once

#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

// The bits of a float rounded to 10 bits of mantissa, ties to even; infinities stay, of a NaN one bit at least does.
GATEDOPS_HOST_DEVICE constexpr uint32_t tf32_bits(uint32_t bits) {
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  const uint32_t rounded = finite ? bits + 0xFFFu + (bits >> 13 & 1u) : bits | (bits & 0x1FFFu ? 0x00400000u : 0u);
  return rounded & 0xFFFFE000u;
}

}  // namespace gatedops::cuda
