// The arguments that the ops of the gram family share on every device, and their checks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/checks.h"

namespace gatedops {

// Says where each layer lies in the words of a row of x and of y.
struct Selection {
  std::vector<int64_t> first, y_first, count;
};

struct GramArgs {
  Tensor words;
  std::optional<Tensor> y_words;
  Selection layers;
  std::vector<double> scale;
  std::optional<Tensor> x{}, y{};
  std::optional<Tensor> factor{}, y_factor{};
  // The slope of each layer where its gates are off, and how many gates it has. Both are empty if every slope is 0.
  std::vector<double> slope{};
  std::vector<int64_t> widths{};

  // Asks for prod_l scale_l <g_l(i), g_l(j)> of two sets of rows, or of one set if y_words is absent.
  static GramArgs lambda(
      const Tensor& words, const std::optional<Tensor>& y_words, Selection layers, std::vector<double> scale) {
    return {words, y_words, std::move(layers), std::move(scale)};
  }

  // Asks for the counts of the layers.
  static GramArgs counts(const Tensor& words, const std::optional<Tensor>& y_words, Selection layers) {
    std::vector<double> ones(layers.count.size(), 1.0);
    return lambda(words, y_words, std::move(layers), std::move(ones));
  }

  // Asks for the same times Sigma = X Y^T.
  GramArgs with_sigma(const std::optional<Tensor>& x_rows, const std::optional<Tensor>& y_rows) && {
    x = x_rows;
    y = y_rows;
    return std::move(*this);
  }

  // Asks for the same with rows and columns scaled.
  GramArgs with_factors(const std::optional<Tensor>& of_rows, const std::optional<Tensor>& of_columns) && {
    factor = of_rows;
    y_factor = of_columns;
    return std::move(*this);
  }

  // Asks for the same with activations of two slopes.
  GramArgs with_slopes(const std::vector<double>& of_layers, const std::vector<int64_t>& gates) && {
    slope = of_layers;
    widths = gates;
    return std::move(*this);
  }

  // Tells whether some layer has a slope that is not 0.
  bool has_slopes() const {
    return std::any_of(slope.begin(), slope.end(), [](double s) { return s != 0; });
  }

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
    require(slope.empty() || slope.size() == layers.count.size(), "slope: needs one number per layer");
    require(widths.size() == slope.size(), "widths: goes with slope, needs one entry per layer");
    require(
        std::all_of(widths.begin(), widths.end(), [](int64_t w) { return w >= 0 && w <= INT32_MAX / 2; }),
        "widths: has more gates than int32 counts");
    if (y_words) {
      require_words(*y_words, "y_words");
    }
    require_layers(layers.y_first, layers.count, y_words ? *y_words : words, "y_first");
    require(y_words.has_value() == y.has_value() || !x, "y: needs y_words, and y_words needs y if x is given");
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

  // Checks the tensor that a Gram is written into.
  void require_out(const Tensor& out) const {
    require(is_gram(out), [&] {
      return "out: got shape " + shape_of(out) + ", needs (" + std::to_string(n()) + ", " + std::to_string(m()) + ")";
    });
    require(out.size(1) <= 1 || out.stride(1) == 1, "out: the elements of a row must be contiguous");
  }

  // Checks the gradient of a Gram.
  void require_grad(const Tensor& grad) const {
    require_float(grad.scalar_type(), "grad");
    require(is_gram(grad), [&] { return "grad: got shape " + shape_of(grad) + ", needs that of the Gram"; });
  }

  // Checks the matrix that a Gram is multiplied with.
  void require_right_factor(const Tensor& v, const char* name) const {
    require(v.dim() == 2 && v.size(0) == m(), [&] {
      return std::string(name) + ": got shape " + shape_of(v) + ", needs (" + std::to_string(m()) + ", c)";
    });
  }

  // Checks the numbers of gates of the layers.
  void require_widths(const std::vector<int64_t>& gates) const {
    require(gates.size() == layers.count.size(), "widths: needs one entry per layer");
  }

  // Checks how many neighbours of a row are wanted. A row is not its own neighbour.
  void require_neighbors(int64_t k) const {
    const int64_t candidates = m() - (y_words ? 0 : 1);
    require(k >= 1 && (k <= candidates || n() == 0), [&] {
      return "k: got " + std::to_string(k) + ", needs 1 to " + std::to_string(candidates);
    });
  }

 private:
  bool is_gram(const Tensor& t) const {
    return t.dim() == 2 && t.size(0) == n() && t.size(1) == m();
  }

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
