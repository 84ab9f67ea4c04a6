// npk_matvec, npk_product and npk_gram_backward: out = K v, for K = Sigma * Lambda made tile by tile and never stored.
// A tile of a symmetric problem serves two row blocks of the output, out_I += K_IJ v_J and out_J += K_IJ^T v_I, so no
// pair is computed twice. In float32, our own loop multiplies few columns of v with each block of a tile while it lies
// in the L1 cache, with sums in double. In float64, or if there are more columns, torch multiplies them with whole
// tiles. npk_product returns sums in double, and uses our own loop for all vectors in double, so that no number is
// rounded.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "block_product.h"
#include "core/cpu/tournament.h"
#include "core/kernel.h"
#include "gram/cpu/sigma/source.h"
#include "problem.h"

namespace gatedops::cpu {
namespace {

template <class T>
class Contraction {
 public:
  // `few` asks for our own loop, which needs float32. out is of T or in double.
  Contraction(
      const GramProblem& p, const SigmaSource<T>* sigma, const std::vector<double>& scale, const Matrix& v,
      const Matrix& out, bool few)
      : p_(p),
        sigma_(sigma),
        scale_(scale.begin(), scale.end()),
        v_(v),
        out_(out),
        buffers_(worker_buffers<T>(p, sigma)),
        few_(kFloat && few),
        products_(buffers_.size(), ProductScratch<T>(p.edge, few_ ? 0 : v_.cols)) {
    if (few_) {
      prepare_few();
    }
  }

  void run() {
    if (p_.symmetric) {
      run_tournament(p_.row_tiles(), [&](int64_t worker, int64_t row, int64_t col) {
        add(worker, p_.rect(row, col), row != col);
      });
    } else {
      run_tasks(p_.row_tiles(), [&](int64_t worker, int64_t row) {
        for (int64_t col = 0; col < p_.col_tiles(); ++col) {
          add(worker, p_.rect(row, col), false);
        }
      });
    }
  }

 private:
  static constexpr bool kFloat = sizeof(T) == sizeof(float);

  // Converts v to doubles, row by row, and makes room for the sums. Doubles are split into two floats: products of two
  // floats are exact in double.
  void prepare_few() {
    few_v_.resize(static_cast<size_t>(v_.rows * v_.cols));
    convert(v_, Matrix::of(few_v_.data(), v_.rows, v_.cols, v_.cols));
    if (v_.dtype == ScalarType::Double) {
      few_low_.resize(few_v_.size());
      for (size_t k = 0; k < few_v_.size(); ++k) {
        const double value = few_v_[k], high = static_cast<float>(value);
        few_v_[k] = high;
        few_low_[k] = static_cast<float>(value - high);
      }
    }
    for (auto& b : buffers_) {
      b.turned.resize(kBlock * kTileStride);
      b.by_rows.resize(static_cast<size_t>(v_.cols * kTile));
      b.by_columns.resize(b.by_rows.size());
    }
  }

  void add(int64_t worker, const TileRect& tile, bool both) {
    if constexpr (kFloat) {
      if (few_) {
        multiply_few(buffers_[worker], tile, both);
        return;
      }
    }
    multiply(worker, tile, both);
  }

  // Multiplies a tile block by block, each while it lies in the L1 cache. A diagonal tile has the same rows and
  // columns.
  void multiply_few(TileBuffers<T>& b, const TileRect& tile, bool both) {
    double *by_rows = b.by_rows.data(), *by_columns = tile.diagonal ? by_rows : b.by_columns.data();
    std::fill_n(by_rows, b.by_rows.size(), 0.0);
    std::fill_n(by_columns, b.by_columns.size(), 0.0);
    each_block(p_, tile, sigma_, scale_, b, [&](const TileRect& block, const float* values) {
      p_.kernels.transpose(values, block.rows, block.cols, b.turned.data());
      add_product(b.turned.data(), block.cols, block.rows, block.j, by_rows + (block.i - tile.i));
      if (both || (tile.diagonal && !block.diagonal)) {
        add_product(values, block.rows, block.cols, block.i, by_columns + (block.j - tile.j));
      }
    });
    add_sums(by_rows, tile.i, tile.rows);
    if (both) {
      add_sums(by_columns, tile.j, tile.cols);
    }
  }

  // Adds v^T block to sums, for the rows of v from `first` on.
  void add_product(const float* block, int rows, int cols, int64_t first, double* sums) const {
    for (const std::vector<double>* part : {&few_v_, &few_low_}) {
      if (!part->empty()) {
        const double* v = part->data() + first * v_.cols;
        p_.kernels.contract(block, rows, cols, v, v_.cols, static_cast<int>(v_.cols), sums);
      }
    }
  }

  // Adds the sums (columns, kTile) to `rows` rows of the output.
  void add_sums(const double* sums, int64_t row, int rows) {
    if (out_.dtype == ScalarType::Double) {
      add_sums_to<double>(sums, row, rows);
    } else {
      add_sums_to<float>(sums, row, rows);
    }
  }

  template <class Out>
  void add_sums_to(const double* sums, int64_t row, int rows) {
    Out* out = reinterpret_cast<Out*>(out_.data) + row * out_.row_stride;
    for (int i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < out_.cols; ++c) {
        Out& value = out[i * out_.row_stride + c];
        value = static_cast<Out>(value + sums[c * kTile + i]);
      }
    }
  }

  void multiply(int64_t worker, const TileRect& tile, bool both) {
    TileBuffers<T>& b = buffers_[worker];
    if (p_.by_block()) {
      b.whole.resize(b.product.size());
    }
    T* whole = p_.by_block() ? b.whole.data() : b.product.data();
    each_block(p_, tile, sigma_, scale_, b, [&](const TileRect& block, const T* values) {
      place(block, tile, values, whole);
    });
    const Matrix values = Matrix::of(whole, tile.rows, tile.cols, kTileStride);
    accumulate(values, rows_of(v_, tile.j, tile.cols), rows_of(out_, tile.i, tile.rows), products_[worker]);
    if (both) {
      accumulate(
          values.transposed(), rows_of(v_, tile.i, tile.rows), rows_of(out_, tile.j, tile.cols), products_[worker]);
    }
  }

  // Copies a block to its place in the tile unless it is there already, and in a diagonal tile also to its mirror
  // image.
  static void place(const TileRect& block, const TileRect& tile, const T* values, T* whole) {
    const int64_t i = block.i - tile.i, j = block.j - tile.j;
    for (int r = 0; values != whole + i * kTileStride + j && r < block.rows; ++r) {
      std::copy_n(values + r * kTileStride, block.cols, whole + (i + r) * kTileStride + j);
    }
    for (int c = 0; tile.diagonal && c < block.cols; ++c) {
      for (int r = 0; r < block.rows; ++r) {
        whole[(j + c) * kTileStride + i + r] = values[r * kTileStride + c];
      }
    }
  }

  static Matrix rows_of(const Matrix& m, int64_t row, int64_t n) {
    return m.block(row, n, 0, m.cols);
  }

  const GramProblem& p_;
  const SigmaSource<T>* sigma_;
  std::vector<T> scale_;
  Matrix v_, out_;
  // The second is empty unless v is in double.
  std::vector<double> few_v_, few_low_;
  std::vector<TileBuffers<T>> buffers_;
  bool few_;
  std::vector<ProductScratch<T>> products_;
};

// Returns K v as a tensor of the dtype of `like`, which is T. v may be of another float dtype.
template <class T>
Tensor contract(const GramArgs& args, const SigmaSource<T>* sigma, const Tensor& v, const Tensor& like) {
  Tensor out = torch::stable::new_zeros(like, {args.n(), v.size(1)});
  const GramProblem problem(args);
  if (v.size(1) > 0) {
    Contraction<T>(problem, sigma, args.scale, Matrix(v), Matrix(out), v.size(1) <= kFewColumns).run();
  }
  return out;
}

Tensor npk_matvec(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const Tensor& v, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, std::vector<double> slope, std::vector<int64_t> widths) {
  const GramArgs args =
      GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_sigma(x, y).with_slopes(slope, widths);
  args.require_valid();
  args.require_right_factor(v, "v");
  require_float(v.scalar_type(), "v");
  if (v.scalar_type() == ScalarType::Float) {
    return contract<float>(args, sigma_source<float>(args).get(), v, v);
  }
  return contract<double>(args, sigma_source<double>(args).get(), v, v);
}

// Returns K v in float64, for K in float32 and v of either dtype. No number of v is rounded. Sums are in double; if v
// is in float32 and has many columns, the sums of the products with one tile are in float32.
Tensor npk_product(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const Tensor& v, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, bool digits, std::vector<double> slope,
    std::vector<int64_t> widths) {
  const GramArgs args =
      GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_sigma(x, y).with_slopes(slope, widths);
  args.require_valid();
  args.require_right_factor(v, "v");
  require_float(v.scalar_type(), "v");
  Tensor out = torch::stable::new_zeros(v, {args.n(), v.size(1)}, ScalarType::Double);
  std::unique_ptr<SigmaSource<float>> sigma;
  if (digits && args.x) {
    sigma = digit_sigma(*args.x, args.right());
  }
  if (!sigma) {
    sigma = sigma_source<float>(args, true);
  }
  const GramProblem problem(args);
  const Matrix in(v), sums(out);
  const bool few = in.dtype == ScalarType::Double || in.cols <= kFewColumns;
  const int64_t at_once = few ? kMostColumns : std::max<int64_t>(1, in.cols);
  for (int64_t c = 0; c < in.cols; c += at_once) {
    const int64_t width = std::min(at_once, in.cols - c);
    const Matrix v_part = in.block(0, in.rows, c, width), out_part = sums.block(0, sums.rows, c, width);
    Contraction<float>(problem, sigma.get(), scale, v_part, out_part, few).run();
  }
  return out;
}

// Returns (G * Lambda) y, or ((G + G^T) * Lambda) y if y_words is absent, in the dtype of G.
Tensor npk_gram_backward(
    const Tensor& grad, const Tensor& words, const Tensor& y, const std::optional<Tensor>& y_words,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    std::vector<double> slope, std::vector<int64_t> widths) {
  const GramArgs args = GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_slopes(slope, widths);
  args.require_valid();
  args.require_right_factor(y, "y");
  args.require_grad(grad);
  const bool symmetric = !y_words;
  if (grad.scalar_type() == ScalarType::Float) {
    return contract<float>(args, given_sigma<float>(grad, symmetric).get(), y, grad);
  }
  return contract<double>(args, given_sigma<double>(grad, symmetric).get(), y, grad);
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("npk_matvec", GATEDOPS_KERNEL(gatedops::cpu::npk_matvec));
  m.impl("npk_product", GATEDOPS_KERNEL(gatedops::cpu::npk_product));
  m.impl("npk_gram_backward", GATEDOPS_KERNEL(gatedops::cpu::npk_gram_backward));
}
