// The arguments that the ops of the gram family share on every device, and their checks.
#pragma once

#include <optional>
#include <vector>

#include "core/checks.h"

namespace gatedops {

struct Selection {
  std::vector<int64_t> first, y_first, count;
};

struct GramArgs {
  std::optional<Tensor> x;
  Tensor words;
  std::optional<Tensor> y, y_words;
  Selection layers;
  std::vector<double> scale;
  std::optional<Tensor> factor, y_factor;

  int64_t n() const {
    return words.size(0);
  }
  int64_t m() const {
    return y_words ? y_words->size(0) : n();
  }
  const Tensor& right() const {
    return y ? *y : *x;
  }

  void require_valid() const {
    require_words(words, "words");
    require_layers(layers.first, layers.count, words, "first");
    require(scale.size() == layers.count.size(), "scale: needs one factor per layer");
    if (y_words) {
      require_words(*y_words, "y_words");
    }
    require_layers(layers.y_first, layers.count, y_words ? *y_words : words, "y_first");
    require(y_words.has_value() == y.has_value() || !x, "y: needs y_words, and y_words needs y where x is given");
    require(y_factor.has_value() == (factor && y_words), "y_factor: goes with factor and y_words");
    if (factor) {
      require_factor(*factor, n(), "factor");
      require_factor(y_factor ? *y_factor : *factor, m(), "y_factor");
    }
    if (x) {
      require_rows(*x, n(), "x");
      require_rows(right(), m(), "y");
      require(right().size(1) == x->size(1), "y: needs as many columns as x");
      require(
          (x->scalar_type() == ScalarType::Byte) == (right().scalar_type() == ScalarType::Byte),
          "y: x and y are both uint8 or neither");
    }
  }

 private:
  static void require_factor(const Tensor& t, int64_t rows, const char* name) {
    require(
        t.dim() == 1 && t.size(0) == rows && t.scalar_type() == ScalarType::Double,
        std::string(name) + ": needs float64 of shape (" + std::to_string(rows) + ",)");
  }

  static void require_rows(const Tensor& t, int64_t rows, const char* name) {
    require(
        t.dim() == 2 && t.size(0) == rows,
        std::string(name) + ": got shape " + shape_of(t) + ", needs (" + std::to_string(rows) + ", d)");
  }
};

}  // namespace gatedops
