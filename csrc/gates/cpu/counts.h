// Counting over the rows of words, for every bit position by itself: the interface between the op (gate_counts.cpp)
// and the kernels of each instruction set.
#pragma once

#include <cstdint>

#include "core/cpu/isa.h"
#include "gram/cpu/kernels.h"  // GATEDOPS_INLINE

namespace gatedops::cpu {

constexpr int64_t kCountRows = int64_t{1} << 15;  // the most rows of one call
constexpr int64_t kCountWords = 256;              // the most words of one call: counters of 32 KiB

// Adds to counts[32 * w + b] in how many of the rows bit b of word w is set. Row r begins at words + r * stride.
// shared: other threads may add to the same counts.
using CountKernel =
    void (*)(const uint32_t* words, int64_t stride, int64_t rows, int64_t row_words, int64_t* counts, bool shared);

CountKernel count_serial();
#if defined(__x86_64__)
CountKernel count_avx2();
CountKernel count_avx512();
#endif

inline CountKernel count_kernel() {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::amx:
    case Isa::avx512:
      return count_avx512();
    case Isa::avx2:
      return count_avx2();
    case Isa::serial:
      break;
  }
#endif
  return count_serial();
}

}  // namespace gatedops::cpu
