// Tile kernels for NEON, which counts the bits of each byte in one instruction.
//
// The inner loop is one AND, one CNT and one ADD of bytes for 4 columns x 32 gates. A register tile of 4 x 4 vectors
// takes 16 of the 32 registers for counters, 4 for a panel's words and one for a row's. Two UADDLP widen the counters
// of bytes every 31 words. `make check-neon` checks the kernels under emulation; no machine has timed them yet.
//
//   instruction        for 128 bit-pairs   Neoverse V2
//                                          latency  a cycle
//   AND, CNT, ADD      1 of each           2        4 (V)
//   DUP                0.25                2        4 (V)
//   128 bit-pairs                          3.25 / 4 = 0.81 cycles
//   bound                                  158 bit-pairs a cycle
//
// DUP, or LD1R with a pipe for vectors besides one for loads, broadcasts the word of a row. GCC 12 also copies a
// register for most steps, which can take a pipe for vectors; the bound does not count these copies. The figures of
// Neoverse V1 and of Apple's CPUs are not known here. bit_pairs_per_second (kernels.h) measures the bound of the CPU at
// hand.
#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "kernels.h"

#include "tile-inl.h"

#include "lanes-inl.h"

#include "rate-inl.h"

namespace gatedops::cpu {
namespace {

struct NeonIsa : FourLanes<NeonIsa> {
  static constexpr int kRows = 4;
  static constexpr int kVecs = 4;

  static Vec step(Vec acc, Vec a, Vec b) {
    const uint8x16_t both = vreinterpretq_u8_u32(vandq_u32(uint32x4_t(a), uint32x4_t(b)));
    return Vec(vaddq_u8(uint8x16_t(acc), vcntq_u8(both)));
  }
  static Vec fold(Vec acc) {
    return Vec(vpaddlq_u16(vpaddlq_u8(uint8x16_t(acc))));
  }
};

constexpr TileKernels kTileNeon = Tile<NeonIsa>::kernels(nullptr);
constexpr RateLoop kRateNeon = Rate<NeonIsa>::loop();

}  // namespace
}  // namespace gatedops::cpu

GATEDOPS_KERNELS_OF(neon, kTileNeon)
GATEDOPS_KERNELS_OF(neon, kRateNeon)

#endif
