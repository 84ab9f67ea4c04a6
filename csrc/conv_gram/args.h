// The arguments of conv_gram and their checks, for every device.
#pragma once

#include <optional>

#include "core/checks.h"

namespace gatedops {

struct ConvGramArgs {
  Tensor x, words;
  std::optional<Tensor> y, y_words;

  const Tensor& right() const {
    return y ? *y : x;
  }
  const Tensor& right_words() const {
    return y_words ? *y_words : words;
  }
  bool symmetric() const {
    return !y_words;
  }

  void require_valid(ScalarType dtype) const {
    require(dtype == ScalarType::Float || dtype == ScalarType::Double, "dtype: needs float32 or float64");
    require(y.has_value() == y_words.has_value(), "y: needs y_words, and y_words needs y");
    require_side(x, words, dtype, "x", "words");
    if (y) {
      require_side(*y, *y_words, dtype, "y", "y_words");
      require(y->size(1) == x.size(1), "y: needs as many columns as x");
      require(y_words->size(1) == words.size(1), "y_words: needs as many words in a row as words");
    }
  }

 private:
  static void require_side(
      const Tensor& x, const Tensor& words, ScalarType dtype, const char* name, const char* words_name) {
    require_words(words, words_name);
    require(
        x.dim() == 2 && x.size(0) == words.size(0),
        std::string(name) + ": got shape " + shape_of(x) + ", needs (" + std::to_string(words.size(0)) + ", D)");
    require(x.scalar_type() == dtype, std::string(name) + ": needs the given dtype");
  }
};

}  // namespace gatedops
