// Portable packing: one element at a time.
#include "pack.h"

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

}  // namespace

PackKernels pack_serial(GateSource source) {
  return pack_for<SerialPack>(source);
}

}  // namespace gatedops::cpu
