// The parts of CUDA that the conv_gram kernels use beyond the language. Tests compile the kernels for the CPU against
// an emulation of these functions (tests/cuda/emulation/). Sums and products are rounded one by one and never
// contracted, so that a map has the same bits as on the CPU.
#pragma once

#if defined(GATEDOPS_EMULATED)
#include "emulated_lanes.h"
#else

#include <cstdint>

namespace gatedops::cuda {

__device__ __forceinline__ float times(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ double times(double a, double b) {
  return __dmul_rn(a, b);
}
__device__ __forceinline__ float plus(float a, float b) {
  return __fadd_rn(a, b);
}
__device__ __forceinline__ double plus(double a, double b) {
  return __dadd_rn(a, b);
}

// Returns the `value` of another lane. All lanes of the warp take part.
template <class T>
__device__ __forceinline__ T shuffled(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

__device__ __forceinline__ int population(uint32_t word) {
  return __popc(word);
}

// Returns a count below 2^23 as a float. The counting began at the bits of 2^23, so `counted` has the bits of the float
// 2^23 + count.
__device__ __forceinline__ float count_as(int32_t counted, float) {
  return __fsub_rn(__int_as_float(counted), 8388608.0f);
}
// The same for a double: the count is in its mantissa, and its high word is a constant.
__device__ __forceinline__ double count_as(int32_t counted, double) {
  return __dsub_rn(__hiloint2double(0x43300000, counted), 4503599627370496.0);
}

// Two words at an even place, read through the cache for data that no kernel writes meanwhile.
struct WordPair {
  uint32_t low, high;
};
__device__ __forceinline__ WordPair word_pair(const uint32_t* words) {
  const uint2 pair = __ldg(reinterpret_cast<const uint2*>(words));
  return {pair.x, pair.y};
}

// Returns the same pointer and keeps it in registers. Otherwise the compiler computes it from its parts at every use.
template <class Number>
__device__ __forceinline__ Number* kept(Number* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

__device__ __forceinline__ unsigned char* conv_shared_memory() {
  extern __shared__ __align__(16) unsigned char gatedops_conv_shared_memory[];
  return gatedops_conv_shared_memory;
}

}  // namespace gatedops::cuda

#endif
