// Tile kernels for NEON, which counts the bits of each byte in one instruction.
//
// The inner loop is one AND, one CNT and one ADD of bytes for 4 columns x 32 gates; a register tile of 4 x 4 vectors
// takes 16 of the 32 registers for counters, 4 for a panel's words and one for a row's. The counters of bytes are
// widened (two UADDLP) every 31 words. Checked under emulation (make check-neon), timed on no machine yet.
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
