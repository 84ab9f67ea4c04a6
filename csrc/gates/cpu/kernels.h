// What is done with rows of gates: the interface between the ops (pack_gates.cpp, gate_counts.cpp) and the kernels of
// each instruction set.
#pragma once

#include <cstdint>

#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"
#include "gates/layout.h"

namespace gatedops::cpu {

// How an element's bits say "greater than zero". NaN is off.
enum class GateSource { f32, f64, bf16, f16, boolean };

// Packing pre-activations into words.
struct PackKernels {
  // One position: channels contiguous elements -> ceil(channels / 32) words.
  void (*row)(const void* q, int64_t channels, uint32_t* words);
  // One row whose positions are contiguous and whose channels lie channel_stride elements apart
  // (NCHW): positions x channels -> position p at words + p * words_per_position.
  void (*planes)(const void* q, int64_t positions, int64_t channels, int64_t channel_stride, uint32_t* words);
};

constexpr int64_t kCountRows = int64_t{1} << 15;  // the most rows that count takes at once
constexpr int64_t kCountWords = 256;              // the most words that count takes at once: counters of 32 KiB

struct GateKernels {
  PackKernels (*pack)(GateSource source);

  // Counts every bit position by itself: adds to counts[32 * w + b] in how many of the rows bit b of word w is set. Row
  // r begins at words + r * stride. shared: other threads may add to the same counts.
  void (*count)(const uint32_t* words, int64_t stride, int64_t rows, int64_t row_words, int64_t* counts, bool shared);
};

}  // namespace gatedops::cpu
