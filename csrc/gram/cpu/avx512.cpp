// Tile kernels for AVX-512 with VPOPCNTDQ.
//
// The inner loop is one VPANDD, one VPOPCNTD and one VPADDD for 16 columns x 32 gates. Disassembled (objdump -d), one
// step of the 4 x 4 register tile is 48 of these operations, 4 loads of the panel and 4 broadcasts of a row's word,
// without spills. The loads and broadcasts use ports of their own.
//
//   instruction     Ice Lake, Sapphire Rapids   Zen 4                   Zen 5
//                   latency  ports              latency  zmm a cycle    zmm a cycle
//   VPANDD zmm      1        p05                1        2              4
//   VPOPCNTD zmm    3        p5                 2        1 (FP01)       2
//   VPADDD zmm      1        p05                1        2              4
//   512 bit-pairs   1.5 cycles                  1.5 cycles              0.75 cycles
//   bound           341 bit-pairs a cycle       341                     683
//
// On Zen 4 a zmm operation takes two of the 256-bit pipes. On Zen 5 VPOPCNTD by itself and the 512 bit-pairs are
// measured in registers; the latencies are not known here. bit_pairs_per_second (kernels.h) measures the bound of the
// CPU at hand.
//
// Measured on Zen 4: VPTERNLOG carry-save adders need 2.5 operations a word instead of 3, but copies of registers cost
// more than they save. Scalar POPCNT on every ninth row beside the vectors is slower. 4 x 2 and 8 x 2 tiles are as
// fast. Writing a line of a finished block in each step of the next gains 8 % for one layer of 1024 gates and nothing
// for four. VPERMI2B as a table of 7 bits is left out: each look-up destroys its index, and loading the index again
// leaves about 400 bit-pairs a cycle at best.
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

// A step is one VPDPBUSD: 64 products of bytes. Its latency is 5 cycles on Ice Lake and 4 on Zen 4, and both start one
// zmm a cycle (p0; FP01), so 64 products a cycle are the bound. The figures of Sapphire Rapids and Zen 5 are not known
// here.
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
