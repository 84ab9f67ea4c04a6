// The layout of GateBits (gatedops/layout.py), for every device.
#pragma once

#include <cstdint>

namespace gatedops {

// Words from one position to the next; a single position is not padded to 64 bits.
constexpr int64_t words_per_position(int64_t positions, int64_t channels) {
  return positions == 1 ? (channels + 31) / 32 : 2 * ((channels + 63) / 64);
}

}  // namespace gatedops
