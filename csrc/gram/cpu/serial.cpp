// Tile kernels for the baseline of the architecture. They count by shifts and masks, in counters of bytes. On x86-64
// GCC compiles a step, which is 128 bit-pairs, to these instructions:
//
//   instruction                  for 128 bit-pairs   Ice Lake, Sapphire Rapids   Zen 4
//                                                    latency  ports              latency  xmm a cycle
//   PAND xmm                     5                   1        p015               1        4
//   PADDD, PSUBD xmm             4                   1        p015               1        4
//   PSRLD xmm                    3                   1        p01                1        2 (FP12)
//   PSHUFD xmm                   0.5                 1        p15                1        2 (FP12)
//   128 bit-pairs                12.5                4.17 cycles                 3.13 cycles
//   bound                                            31 bit-pairs a cycle        41
//
// PSHUFD broadcasts the word of a row. Copies of registers need no port. The figures of Zen 5 and of Arm are not known
// here. bit_pairs_per_second (kernels.h) measures the bound of the CPU at hand.
#include <cstring>

#include "kernels.h"

#include "tile-inl.h"

#include "lanes-inl.h"

#include "rate-inl.h"

namespace gatedops::cpu {
namespace {

struct SerialIsa : FourLanes<SerialIsa> {
  static constexpr int kRows = 2;
  static constexpr int kVecs = 2;

  // Adds the four byte counts of each lane's AND.
  static Vec step(Vec acc, Vec a, Vec b) {
    Vec x = a & b;
    x -= (x >> 1) & 0x55555555u;
    x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
    return acc + ((x + (x >> 4)) & 0x0f0f0f0fu);
  }
  static Vec fold(Vec acc) {
    const Vec pairs = (acc & 0x00ff00ffu) + ((acc >> 8) & 0x00ff00ffu);
    return (pairs & 0xffffu) + (pairs >> 16);
  }
};

constexpr TileKernels kTileSerial = Tile<SerialIsa>::kernels(nullptr);
constexpr RateLoop kRateSerial = Rate<SerialIsa>::loop();

}  // namespace
}  // namespace gatedops::cpu

GATEDOPS_KERNELS_OF(serial, kTileSerial)
GATEDOPS_KERNELS_OF(serial, kRateSerial)
