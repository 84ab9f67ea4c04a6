// Tile kernels for the baseline of the architecture: shift-and-mask counting in byte counters.
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
