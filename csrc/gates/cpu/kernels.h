// The interface between the ops on rows of gates (pack_gates.cpp, gate_counts.cpp) and the kernels of each instruction
// set.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"
#include "gates/layout.h"

namespace gatedops::cpu {

// The type of the elements, which decides how their bits say "greater than zero". The gate of a NaN is off.
enum class GateSource { f32, f64, bf16, f16, boolean };

// These pack pre-activations into words.
struct PackKernels {
  // Packs one position: `channels` contiguous elements become ceil(channels / 32) words.
  void (*row)(const void* q, int64_t channels, uint32_t* words);
  // Packs one row whose positions are contiguous and whose channels lie channel_stride elements apart (NCHW). Position
  // p goes to words + p * words_per_position.
  void (*planes)(const void* q, int64_t positions, int64_t channels, int64_t channel_stride, uint32_t* words);
};

// count takes at most this many rows, and at most this many words of a row. Its counters then take 32 KiB.
constexpr int64_t kCountRows = int64_t{1} << 15;
constexpr int64_t kCountWords = 256;

struct GateKernels {
  PackKernels (*pack)(GateSource source);

  // Counts every bit position by itself: adds to counts[32 * w + b] in how many of the rows bit b of word w is set. Row
  // r begins at words + r * stride. If `shared`, other threads may add to the same counts.
  void (*count)(const uint32_t* words, int64_t stride, int64_t rows, int64_t row_words, int64_t* counts, bool shared);
};

}  // namespace gatedops::cpu
