// Portable tile kernels: plain C++ over eight lanes, which every compiler turns into whatever the
// baseline instruction set has (SSE2 on x86-64, NEON on Arm).
#include <cstring>

#include "gram_tile.h"
#include "gram_tile_body.h"

namespace gatedops::cpu {
namespace {

struct SerialIsa {
  static constexpr int kLanes = 8;
  static constexpr int kRows = 2;
  static constexpr int kVecs = 1;
  static constexpr int kMaxSteps = 31;  // byte counters: 31 * 8 <= 255
  struct Vec {
    uint32_t lane[kLanes];
  };

  template <class F>
  static Vec map(const F& f) {
    Vec v;
    for (int i = 0; i < kLanes; ++i) {
      v.lane[i] = f(i);
    }
    return v;
  }
  static Vec zero() {
    return map([](int) { return 0u; });
  }
  template <class T>
  static Vec load(const T* p) {
    Vec v;
    std::memcpy(v.lane, p, sizeof v.lane);
    return v;
  }
  template <class T>
  static void store(T* p, const Vec& v) {
    std::memcpy(p, v.lane, sizeof v.lane);
  }
  static void stream(uint32_t* p, const Vec& v) { store(p, v); }
  static Vec broadcast(const uint32_t* p) {
    return map([p](int) { return *p; });
  }
  static Vec add(const Vec& a, const Vec& b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  // Adds the four byte counts of each lane's AND.
  static Vec step(const Vec& acc, const Vec& a, const Vec& b) {
    return map([&](int i) {
      uint32_t x = a.lane[i] & b.lane[i];
      x -= (x >> 1) & 0x55555555u;
      x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
      x = (x + (x >> 4)) & 0x0f0f0f0fu;
      return acc.lane[i] + x;
    });
  }
  static Vec fold(const Vec& acc) {
    return map([&](int i) {
      const uint32_t pairs = (acc.lane[i] & 0x00ff00ffu) + ((acc.lane[i] >> 8) & 0x00ff00ffu);
      return (pairs & 0xffffu) + (pairs >> 16);
    });
  }
  static void transpose(Vec (&square)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < i; ++j) {
        const uint32_t swapped = square[i].lane[j];
        square[i].lane[j] = square[j].lane[i];
        square[j].lane[i] = swapped;
      }
    }
  }
  template <class T>
  static void multiply(T* product, const Vec& counts, T scale, bool assign) {
    for (int i = 0; i < kLanes; ++i) {
      const T factor = static_cast<T>(static_cast<int32_t>(counts.lane[i])) * scale;
      product[i] = assign ? factor : product[i] * factor;
    }
  }
};

}  // namespace

const TileKernels kTileSerial = Tile<SerialIsa>::kernels();

}  // namespace gatedops::cpu
