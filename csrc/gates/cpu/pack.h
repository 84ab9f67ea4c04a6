// Packing pre-activations into words: the interface between the op (pack_gates.cpp) and the kernels of
// each instruction set.
#pragma once

#include <cstdint>

#include "core/cpu/isa.h"
#include "gates/layout.h"

namespace gatedops::cpu {

// How an element's bits say "greater than zero". NaN is off.
enum class GateSource { f32, f64, bf16, f16, boolean };

struct PackKernels {
  // One position: channels contiguous elements -> ceil(channels / 32) words.
  void (*row)(const void* q, int64_t channels, uint32_t* words);
  // One row whose positions are contiguous and whose channels lie channel_stride elements apart
  // (NCHW): positions x channels -> position p at words + p * words_per_position.
  void (*planes)(const void* q, int64_t positions, int64_t channels, int64_t channel_stride, uint32_t* words);
};

PackKernels pack_serial(GateSource source);
#if defined(__x86_64__)
PackKernels pack_avx2(GateSource source);
PackKernels pack_avx512(GateSource source);
#endif

inline PackKernels pack_kernels(GateSource source) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::amx:
    case Isa::avx512:
      return pack_avx512(source);
    case Isa::avx2:
      return pack_avx2(source);
    case Isa::serial:
      break;
  }
#endif
  return pack_serial(source);
}

}  // namespace gatedops::cpu
