// The parts of CUDA C++ that kernels use, emulated on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "fibers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// The blocks of a cluster run at the same time. Their fibers are numbered block by block.
namespace emulation {
struct Cluster {
  static inline int block_threads = 1;
  static inline unsigned first_block = 0;

  static int rank() {
    return Fibers::current() / block_threads;
  }
  static int thread() {
    return Fibers::current() % block_threads;
  }
};
}  // namespace emulation

struct Dim {
  unsigned x;
};
inline Dim gridDim;
struct BlockIndex {
  struct Current {
    operator unsigned() const {
      return emulation::Cluster::first_block + static_cast<unsigned>(emulation::Cluster::rank());
    }
  } x;
};
struct ThreadIndex {
  struct Current {
    operator unsigned() const {
      return static_cast<unsigned>(emulation::Cluster::thread());
    }
  } x;
};
inline BlockIndex blockIdx;
inline ThreadIndex threadIdx;

using std::max;
using std::min;

struct __nv_bfloat16 {
  uint16_t bits = 0;
};

template <class To, class From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline float __uint2float_rn(uint32_t value) {
  return static_cast<float>(value);
}
inline double __uint2double_rn(uint32_t value) {
  return static_cast<double>(value);
}
inline float __int2float_rn(int32_t value) {
  return static_cast<float>(value);
}
inline float __int_as_float(int32_t bits) {
  return bits_as<float>(bits);
}
inline double __hiloint2double(int32_t high, int32_t low) {
  return bits_as<double>(uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low));
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return bits_as<float>(uint32_t{value.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {  // This takes finite values only.
  const auto bits = bits_as<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
