// Row kernels of the gated layers for the baseline of the architecture.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>

#include "kernels.h"

#include "rows-inl.h"

namespace gatedops::cpu {
namespace {

struct SerialRows {
  template <class E>
  static uint16_t relu(const E* from, E* to) {
    return relu_of_sixteen(from, to);
  }
  template <class Bits>
  static void keep(const Bits* from, Bits* to, uint16_t gates) {
    for (int k = 0; k < 16; ++k) {
      to[k] = static_cast<Bits>(from[k] & (Bits(0) - static_cast<Bits>(gates >> k & 1)));
    }
  }
};

constexpr GatedLinearKernels kSerial{rows_for<SerialRows>};

}  // namespace
}  // namespace gatedops::cpu

GATEDOPS_KERNELS_OF(serial, kSerial)
