// Tile kernels for AVX-512 with VPOPCNTDQ.
//
// The inner loop is one VPANDD, one VPOPCNTD and one VPADDD for 16 columns x 32 gates. Disassembled
// (objdump -d), one step of the 4 x 4 register tile is 48 such operations, 4 loads of the panel and 4
// broadcasts of a row's word, no spills. Three 512-bit operations on two 512-bit ports (Intel: p0, p5; AMD
// Zen 4: four 256-bit pipes) bound it at 512 bit-pairs per 1.5 cycles, 341 a cycle; loads and broadcasts fit
// beside that. Measured on Zen 4: VPTERNLOG carry-save adders (2.5 operations a word instead of 3) lose to
// their register copies; scalar POPCNT on every ninth row beside the vectors is slower; 4 x 2 and 8 x 2 tiles
// are as fast; a finished block written a line a step while the next is counted gains 8 % for one layer of
// 1024 gates and nothing for four. Left out: VPERMI2B as a table of 7 bits; each look-up destroys its index,
// and reloading it leaves about 400 bit-pairs a cycle at best.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "tile-inl.h"

#include "avx512-inl.h"

#include "rate-inl.h"

namespace gatedops::cpu {
namespace {

// VPDPBUSD: 64 products of bytes a step.
struct Avx512Bytes : Avx512Isa {
  static Vec step(Vec acc, Vec a, Vec b) {
    return _mm512_dpbusd_epi32(acc, a, b);
  }
};

constexpr TileKernels kTileAvx512 = Tile<Avx512Isa>::kernels(Tile<Avx512Bytes>::dot_bytes);
constexpr RateLoop kRateAvx512 = Rate<Avx512Isa>::loop();

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx512, kTileAvx512)
GATEDOPS_KERNELS_OF(avx512, kRateAvx512)

#endif
