// soft_npk_gram and its derivative: K = prod_l scale_l <a_l(i), b_l(j)> for real-valued gates (the kernels of DLNPF and
// DLGN nets). Torch multiplies the matrices of one tile at a time, and the product over layers is made tile by tile, so
// no L x n x m buffer exists.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "block_product.h"
#include "core/cpu/output.h"
#include "core/cpu/tournament.h"
#include "core/kernel.h"

namespace gatedops::cpu {
namespace {

// A tile has at most this many rows and columns.
constexpr int64_t kEdge = 128;
// The rows of a tile lie this many elements apart.
constexpr int64_t kStride = kEdge + 16;

struct SoftLayer {
  // The layer has `width` columns from column `first` on.
  int64_t first, width;
  double scale;
};

struct SoftProblem {
  Matrix a, b;
  bool symmetric;
  std::vector<SoftLayer> layers;

  SoftProblem(
      const Tensor& a_, const std::optional<Tensor>& b_, const std::vector<int64_t>& widths,
      const std::vector<double>& scale)
      : a(a_), b(b_ ? *b_ : a_), symmetric(!b_) {
    int64_t first = 0;
    for (size_t l = 0; l < widths.size(); ++l) {
      layers.push_back({first, widths[l], scale[l]});
      first += widths[l];
    }
  }

  static int64_t blocks(int64_t rows) {
    return (rows + kEdge - 1) / kEdge;
  }
  static int64_t height(const Matrix& m, int64_t block) {
    return std::min(kEdge, m.rows - block * kEdge);
  }
  static Matrix columns(const Matrix& m, int64_t block, const SoftLayer& l) {
    return m.block(block * kEdge, height(m, block), l.first, l.width);
  }
};

template <class T>
struct SoftTile {
  explicit SoftTile(size_t tiles) : values(tiles * kEdge * kStride) {}
  T* tile(size_t t) {
    return values.data() + t * kEdge * kStride;
  }
  std::vector<T> values;
};

// Calls f(index) for the elements of a tile.
template <class F>
void each(int64_t rows, int64_t cols, const F& f) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      f(i * kStride + j);
    }
  }
}

// Sets counts to scale_l <a_l, b_l> of one tile.
template <class T>
void soft_counts(const SoftProblem& p, const SoftLayer& l, int64_t row, int64_t col, T* counts) {
  const int64_t rows = SoftProblem::height(p.a, row), cols = SoftProblem::height(p.b, col);
  mm(SoftProblem::columns(p.a, row, l), SoftProblem::columns(p.b, col, l).transposed(),
     Matrix::of(counts, rows, cols, kStride));
  const T scale = static_cast<T>(l.scale);
  each(rows, cols, [=](int64_t e) { counts[e] *= scale; });
}

template <class T>
void soft_tile(const SoftProblem& p, int64_t row, int64_t col, SoftTile<T>& s, Matrix out) {
  const int64_t rows = SoftProblem::height(p.a, row), cols = SoftProblem::height(p.b, col);
  T *product = s.tile(0), *counts = s.tile(1);
  for (size_t l = 0; l < p.layers.size(); ++l) {
    soft_counts(p, p.layers[l], row, col, l == 0 ? product : counts);
    if (l > 0) {
      each(rows, cols, [=](int64_t e) { product[e] *= counts[e]; });
    }
  }
  if (p.symmetric && row == col) {  // makes the tile symmetric to the bit for any matrix product
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        product[j * kStride + i] = product[i * kStride + j];
      }
    }
  }
  const Matrix tile = Matrix::of(product, rows, cols, kStride);
  convert(tile, out.block(row * kEdge, rows, col * kEdge, cols));
  if (p.symmetric && row != col) {
    convert(tile.transposed(), out.block(col * kEdge, cols, row * kEdge, rows));
  }
}

template <class T>
void soft_into(const SoftProblem& p, const Tensor& out) {
  std::vector<SoftTile<T>> scratch(static_cast<size_t>(workers()), SoftTile<T>(2));
  const Matrix to(out);
  const int64_t rows = SoftProblem::blocks(p.a.rows), cols = SoftProblem::blocks(p.b.rows);
  run_tasks(rows * cols, [&](int64_t worker, int64_t t) {
    if (!p.symmetric || t % cols <= t / cols) {
      soft_tile(p, t / cols, t % cols, scratch[worker], to);
    }
  });
}

// Adds (G_IJ * prod_{k != l} counts_k) scale_l b_l(J) to da_l(I), and does the same for the mirror image if the problem
// is symmetric.
template <class T>
class SoftBackward {
 public:
  SoftBackward(const SoftProblem& p, const Tensor& grad, Tensor& out)
      : p_(p), grad_(grad), out_(out), scratch_(static_cast<size_t>(workers()), SoftTile<T>(2 * p.layers.size() + 2)) {
    int64_t widest = 1;
    for (const SoftLayer& l : p.layers) {
      widest = std::max(widest, l.width);
    }
    products_.assign(scratch_.size(), ProductScratch<T>(kEdge, widest));
  }

  void run() {
    const int64_t rows = SoftProblem::blocks(p_.a.rows), cols = SoftProblem::blocks(p_.b.rows);
    if (p_.symmetric) {
      run_tournament(rows, [&](int64_t worker, int64_t row, int64_t col) { add(worker, row, col); });
    } else {
      run_tasks(rows, [&](int64_t worker, int64_t row) {
        for (int64_t col = 0; col < cols; ++col) {
          add(worker, row, col);
        }
      });
    }
  }

 private:
  // A worker's scratch has these tiles: 0 is the running product from the last layer on, and 1 is a weight. Then come,
  // for each layer, its counts and the product of G and the layers before it.
  void add(int64_t worker, int64_t row, int64_t col) {
    SoftTile<T>& s = scratch_[worker];
    const int64_t rows = SoftProblem::height(p_.a, row), cols = SoftProblem::height(p_.b, col);
    T *suffix = s.tile(0), *weight = s.tile(1);
    load_grad(row, col, rows, cols, s.tile(3), weight);
    for (size_t l = 0; l < p_.layers.size(); ++l) {
      T *counts = s.tile(2 * l + 2), *before = s.tile(2 * l + 3);
      soft_counts(p_, p_.layers[l], row, col, counts);
      if (l + 1 < p_.layers.size()) {
        T* after = s.tile(2 * l + 5);
        each(rows, cols, [=](int64_t e) { after[e] = before[e] * counts[e]; });
      }
    }
    each(rows, cols, [=](int64_t e) { suffix[e] = T(1); });
    for (size_t l = p_.layers.size(); l-- > 0;) {
      const T *counts = s.tile(2 * l + 2), *before = s.tile(2 * l + 3);
      const T scale = static_cast<T>(p_.layers[l].scale);
      each(rows, cols, [=](int64_t e) {
        weight[e] = before[e] * suffix[e] * scale;
        suffix[e] *= counts[e];
      });
      spread(worker, row, col, p_.layers[l], Matrix::of(weight, rows, cols, kStride));
    }
  }

  // Sets `to` to G of the tile, plus its mirror image if one tile stands for two.
  void load_grad(int64_t row, int64_t col, int64_t rows, int64_t cols, T* to, T* mirrored) {
    convert(grad_.block(row * kEdge, rows, col * kEdge, cols), Matrix::of(to, rows, cols, kStride));
    if (p_.symmetric) {
      convert(
          grad_.block(col * kEdge, cols, row * kEdge, rows).transposed(), Matrix::of(mirrored, rows, cols, kStride));
      each(rows, cols, [=](int64_t e) { to[e] += mirrored[e]; });
    }
  }

  void spread(int64_t worker, int64_t row, int64_t col, const SoftLayer& l, const Matrix& weight) {
    accumulate(weight, SoftProblem::columns(p_.b, col, l), SoftProblem::columns(out_, row, l), products_[worker]);
    if (p_.symmetric && row != col) {
      accumulate(
          weight.transposed(), SoftProblem::columns(p_.a, row, l), SoftProblem::columns(out_, col, l),
          products_[worker]);
    }
  }

  const SoftProblem& p_;
  Matrix grad_, out_;
  std::vector<SoftTile<T>> scratch_;
  std::vector<ProductScratch<T>> products_;
};

void require_soft(
    const Tensor& a, const std::optional<Tensor>& b, const std::vector<int64_t>& widths,
    const std::vector<double>& scale) {
  int64_t total = 0;
  for (const int64_t width : widths) {
    require(width >= 1, "widths: every layer needs at least one gate");
    total += width;
  }
  require(!widths.empty() && widths.size() == scale.size(), "scale: needs one factor per layer, of at least one");
  require_float(a.scalar_type(), "a");
  require(a.dim() == 2 && a.size(1) == total, "a: got shape " + shape_of(a) + ", needs (n, sum of widths)");
  if (b) {
    require(b->dim() == 2 && b->size(1) == total, "b: got shape " + shape_of(*b) + ", needs (m, sum of widths)");
    require(b->scalar_type() == a.scalar_type(), "b: needs the dtype of a");
  }
}

Tensor soft_npk_gram(
    const Tensor& a, const std::optional<Tensor>& b, std::vector<int64_t> widths, std::vector<double> scale) {
  require_soft(a, b, widths, scale);
  Tensor out = new_output(a, {a.size(0), b ? b->size(0) : a.size(0)});
  const SoftProblem problem(a, b, widths, scale);
  if (a.scalar_type() == ScalarType::Float) {
    soft_into<float>(problem, out);
  } else {
    soft_into<double>(problem, out);
  }
  return out;
}

Tensor soft_npk_gram_backward(
    const Tensor& grad, const Tensor& a, const std::optional<Tensor>& b, std::vector<int64_t> widths,
    std::vector<double> scale) {
  require_soft(a, b, widths, scale);
  require(
      grad.dim() == 2 && grad.size(0) == a.size(0) && grad.size(1) == (b ? b->size(0) : a.size(0)),
      "grad: got shape " + shape_of(grad) + ", needs that of the Gram");
  Tensor out = torch::stable::new_zeros(a, {a.size(0), a.size(1)});
  const SoftProblem problem(a, b, widths, scale);
  if (a.scalar_type() == ScalarType::Float) {
    SoftBackward<float>(problem, grad, out).run();
  } else {
    SoftBackward<double>(problem, grad, out).run();
  }
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("soft_npk_gram", GATEDOPS_KERNEL(gatedops::cpu::soft_npk_gram));
  m.impl("soft_npk_gram_backward", GATEDOPS_KERNEL(gatedops::cpu::soft_npk_gram_backward));
}
