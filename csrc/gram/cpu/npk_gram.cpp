// npk_gram, npk_gram_out, npk_diag: the Gram of neural path features, Sigma * prod_l counts_l, one tile at a time.
// Every element of the output is written once.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <memory>

#include "core/cpu/output.h"
#include "core/kernel.h"
#include "gram/cpu/sigma/source.h"
#include "problem.h"

namespace gatedops::cpu {
namespace {

template <class T>
void store(const TileKernels& k, const T* tile, int rows, int cols, T* out, int64_t stride, bool stream) {
  if constexpr (sizeof(T) == sizeof(float)) {
    k.store_f32(tile, rows, cols, out, stride, stream);
  } else {
    k.store_f64(tile, rows, cols, out, stride, stream);
  }
}

template <class T>
void store_transposed(const TileKernels& k, const T* tile, int rows, int cols, T* out, int64_t stride, bool stream) {
  if constexpr (sizeof(T) == sizeof(float)) {
    k.store_transposed_f32(tile, rows, cols, out, stride, stream);
  } else {
    k.store_transposed_f64(tile, rows, cols, out, stride, stream);
  }
}

// The factors of rows and columns, applied as K_ij * (factor_i * y_factor_j). This is symmetric in i and j. It is done
// in double, which holds the factors of a deep net and their product.
class Factors {
 public:
  explicit Factors(const GramArgs& args)
      : rows_(values(args.factor)), cols_(args.y_factor ? values(args.y_factor) : rows_) {}

  template <class T>
  void apply(const TileRect& tile, T* values) const {
    if (rows_.empty()) {
      return;
    }
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        T& value = values[i * kTileStride + j];
        value = static_cast<T>(static_cast<double>(value) * (rows_[tile.i + i] * cols_[tile.j + j]));
      }
    }
  }

 private:
  static std::vector<double> values(const std::optional<Tensor>& t) {
    std::vector<double> copy;
    if (t) {
      const auto* data = static_cast<const double*>(t->const_data_ptr());
      for (int64_t i = 0; i < t->size(0); ++i) {
        copy.push_back(data[i * t->stride(0)]);
      }
    }
    return copy;
  }

  std::vector<double> rows_, cols_;
};

// Tells whether some rows of the output do not begin a cache line. If the output is written past the caches, a line
// that one block and the next write in parts costs as much as several whole ones. Whole tiles have fewer ends of rows
// than blocks.
template <class T>
bool has_ragged_rows(const Tensor& out) {
  const auto begin = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  return (begin | static_cast<uint64_t>(out.stride(0)) * sizeof(T)) % 64 != 0;
}

template <class T>
void gram_into(const GramArgs& args, Tensor& out) {
  const bool stream = out.size(0) * out.size(1) * static_cast<int64_t>(sizeof(T)) > kStreamBytes;
  const GramProblem problem(args, stream && has_ragged_rows<T>(out));
  const auto sigma = sigma_source<T>(args);
  const std::vector<T> scale(args.scale.begin(), args.scale.end());
  const Factors factors(args);
  auto buffers = worker_buffers<T>(problem, sigma.get());
  T* data = static_cast<T*>(out.mutable_data_ptr());
  const int64_t stride = out.stride(0);

  const auto write = [&](const TileRect& rect, const T* values) {
    store(problem.kernels, values, rect.rows, rect.cols, data + rect.i * stride + rect.j, stride, stream);
    if (problem.symmetric && !rect.diagonal) {
      store_transposed(problem.kernels, values, rect.rows, rect.cols, data + rect.j * stride + rect.i, stride, stream);
    }
  };
  run_tasks(problem.tiles(), [&](int64_t worker, int64_t t) {
    const TileRect tile = problem.tile(t);
    const bool whole = problem.whole_tiles && !tile.diagonal;
    each_block(problem, tile, sigma.get(), scale, buffers[worker], [&](const TileRect& block, T* values) {
      factors.apply(block, values);
      if (!whole) {
        write(block, values);
      }
    });
    if (whole) {
      write(tile, buffers[worker].product.data());
    }
  });
}

void gram_dispatch(const GramArgs& args, Tensor& out) {
  args.require_valid();
  if (out.scalar_type() == ScalarType::Float) {
    gram_into<float>(args, out);
  } else {
    gram_into<double>(args, out);
  }
}

Tensor npk_gram(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const std::optional<Tensor>& factor, const std::optional<Tensor>& y_factor,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    ScalarType dtype, std::vector<double> slope, std::vector<int64_t> widths) {
  const GramArgs args = GramArgs::lambda(words, y_words, {first, y_first, count}, scale)
                            .with_sigma(x, y)
                            .with_factors(factor, y_factor)
                            .with_slopes(slope, widths);
  require_float(dtype, "dtype");
  args.require_valid();
  Tensor out = new_output(words, {args.n(), args.m()}, dtype);
  gram_dispatch(args, out);
  return out;
}

void npk_gram_out(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const std::optional<Tensor>& factor, const std::optional<Tensor>& y_factor,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    std::vector<double> slope, std::vector<int64_t> widths, Tensor out) {
  const GramArgs args = GramArgs::lambda(words, y_words, {first, y_first, count}, scale)
                            .with_sigma(x, y)
                            .with_factors(factor, y_factor)
                            .with_slopes(slope, widths);
  args.require_valid();
  require_float(out.scalar_type(), "out");
  args.require_out(out);
  gram_dispatch(args, out);
}

// Returns a layer's factor of the diagonal, of a row that has `on` of its gates on.
template <class T>
T diagonal_factor(const GramArgs& args, int l, int32_t on) {
  const T scale = static_cast<T>(args.scale[l]);
  if (args.slope.empty() || args.slope[l] == 0) {
    return static_cast<T>(on) * scale;
  }
  return SlopedLayer<T>::of(args.slope[l], scale, args.widths[l]).factor(2 * on, on);
}

template <class T>
void diag_into(const GramArgs& args, Tensor& out) {
  const PackedRows rows(args.words);
  const Selection& layers = args.layers;
  const TileKernels& k = active_kernels<TileKernels>();
  const auto depth = static_cast<int>(layers.count.size());
  T* data = static_cast<T*>(out.mutable_data_ptr());
  torch::stable::parallel_for(0, rows.rows(), 64, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> counts(layers.count.size());
    for (int64_t i = begin; i < end; ++i) {
      k.row_counts(rows.row(i), layers.first.data(), layers.count.data(), depth, counts.data());
      T product = T(1);
      for (int l = 0; l < depth; ++l) {
        product *= diagonal_factor<T>(args, l, counts[l]);
      }
      data[i] = product;
    }
  });
}

Tensor npk_diag(
    const Tensor& words, std::vector<int64_t> first, std::vector<int64_t> count, std::vector<double> scale,
    ScalarType dtype, std::vector<double> slope, std::vector<int64_t> widths) {
  const GramArgs args = GramArgs::lambda(words, {}, {first, first, count}, scale).with_slopes(slope, widths);
  args.require_valid();
  require_float(dtype, "dtype");
  Tensor out = torch::stable::new_empty(words, {words.size(0)}, dtype);
  if (dtype == ScalarType::Float) {
    diag_into<float>(args, out);
  } else {
    diag_into<double>(args, out);
  }
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("npk_gram", GATEDOPS_KERNEL(gatedops::cpu::npk_gram));
  m.impl("npk_gram_out", GATEDOPS_KERNEL(gatedops::cpu::npk_gram_out));
  m.impl("npk_diag", GATEDOPS_KERNEL(gatedops::cpu::npk_diag));
}
