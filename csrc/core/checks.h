// Argument checks that all kernels share. They keep the raw ops from reading or writing outside a tensor; the Python
// wrappers check the same things earlier, in the user's terms.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "require.h"

namespace gatedops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::string s = "(";
  for (int64_t d = 0; d < t.dim(); ++d) {
    s += (d ? ", " : "") + std::to_string(t.size(d));
  }
  return s + ")";
}

inline void require_words(const Tensor& words, const char* name) {
  require(words.dim() == 2, [&] { return std::string(name) + ": got shape " + shape_of(words) + ", needs (n, W)"; });
  require(words.scalar_type() == ScalarType::Int, [&] { return std::string(name) + ": needs dtype int32"; });
  require(words.size(1) <= 1 || words.stride(1) == 1, [&] {
    return std::string(name) + ": the words of a row must be contiguous";
  });
}

inline void require_float(ScalarType dtype, const char* name) {
  require(
      dtype == ScalarType::Float || dtype == ScalarType::Double,
      std::string(name) + ": the CPU computes in float32 or float64");
}

// Layers must be non-empty, and every word of a layer must lie inside the row.
inline void require_layers(
    const std::vector<int64_t>& first, const std::vector<int64_t>& count, const Tensor& words, const char* name) {
  require(!count.empty(), "count: needs at least one layer");
  require(first.size() == count.size(), std::string(name) + ": needs one entry per layer");
  for (size_t l = 0; l < count.size(); ++l) {
    const bool inside = count[l] >= 1 && first[l] >= 0 && first[l] <= words.size(1) - count[l];
    require(inside, std::string(name) + ": layer " + std::to_string(l) + " lies outside the row of words");
  }
}

}  // namespace gatedops
