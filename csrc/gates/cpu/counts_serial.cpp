// Portable positional popcount: two words a step.
#include <algorithm>
#include <cstring>

#include "counts.h"

#include "counts-inl.h"

namespace gatedops::cpu {
namespace {

struct SerialCount {
  static constexpr int kWords = 2;
  using Vector = uint64_t;
  using Lanes = size_t;  // bytes

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
  // sum + a + b: the sum stays, the carry is returned.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    const Vector differ = a ^ b, both = (a & b) | (differ & sum);
    sum ^= differ;
    return both;
  }
};

}  // namespace

CountKernel count_serial() {
  return count_rows<SerialCount>;
}

}  // namespace gatedops::cpu
