// The layout of GateBits for every device, as gatedops/layout.py has it.
#pragma once

#include <cstdint>

namespace gatedops {

// Returns how many words lie from one position to the next. A single position is not padded to 64 bits.
constexpr int64_t words_per_position(int64_t positions, int64_t channels) {
  return positions == 1 ? (channels + 31) / 32 : 2 * ((channels + 63) / 64);
}

constexpr int64_t kLayerWords = 8;  // A layer starts on a 256-bit boundary.

// Returns how many words a layer takes whose gates need `used` words.
constexpr int64_t padded_words(int64_t used) {
  return (used + kLayerWords - 1) / kLayerWords * kLayerWords;
}

constexpr int64_t layer_words(int64_t positions, int64_t channels) {
  return padded_words(positions * words_per_position(positions, channels));
}

}  // namespace gatedops
