// Portable packing, which takes one element at a time.
#include <algorithm>
#include <cstring>

#include "kernels.h"

#include "counts-inl.h"

#include "pack-inl.h"

namespace gatedops::cpu {
namespace {

struct SerialPack {
  static constexpr int kLanes = 1;
  template <class E>
  static bool on(const E* q) {
    return is_on(*q);
  }
  static uint32_t bits(bool mask) {
    return mask;
  }
  static uint32_t zero() {
    return 0;
  }
  static uint32_t set_bit(uint32_t column, bool mask, int bit) {
    return column | static_cast<uint32_t>(mask) << bit;
  }
  static void store(uint32_t* to, uint32_t column) {
    *to = column;
  }
};

// Portable positional popcount: a vector has two words.
struct SerialCount {
  static constexpr int kWords = 2;
  using Vector = uint64_t;
  // Lanes are counted in bytes.
  using Lanes = size_t;

  static Lanes lanes(int64_t words) {
    return static_cast<size_t>(words) * sizeof(uint32_t);
  }
  static Vector zero() {
    return 0;
  }
  static Vector load(const uint32_t* from, Lanes bytes) {
    Vector v = 0;
    if (bytes == sizeof(v)) {
      std::memcpy(&v, from, sizeof(v));
    } else {
      std::memcpy(&v, from, sizeof(uint32_t));
    }
    return v;
  }
  static void store(uint32_t* to, Vector v) {
    std::memcpy(to, &v, sizeof(v));
  }
  // Adds a and b to sum, and returns the carry.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    const Vector differ = a ^ b, both = (a & b) | (differ & sum);
    sum ^= differ;
    return both;
  }
};

constexpr GateKernels kSerial{pack_for<SerialPack>, count_rows<SerialCount>};

}  // namespace
}  // namespace gatedops::cpu

GATEDOPS_KERNELS_OF(serial, kSerial)
