// Makes tensors that the kernels can take: whole rows, padded bytes, panels of rows, products. It uses only torch, and
// tests compile it without CUDA.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "gram/args.h"

namespace gatedops::cuda {

// If a Gram is not the result, at most this much of it is held at a time.
constexpr int64_t kPanelBytes = int64_t{64} << 20;
constexpr int64_t kPanelRows = 128;  // A panel is a multiple of this many rows, so that it has whole tiles.

// Tells whether rows overlap, as those of an expanded tensor do, which all begin at the same place. The copies of the
// kernels need rows that do not.
inline bool rows_overlap(const Tensor& t, int64_t row) {
  return t.size(0) > 1 && t.stride(0) < row;
}

// Returns t, or a copy of it if its rows overlap.
inline Tensor whole_rows(const Tensor& t) {
  return t.dim() == 2 && rows_overlap(t, t.size(1)) ? torch::stable::contiguous(t) : t;
}

// Arguments whose gates lie in whole rows. A problem is made of these alone, so that no op can forget the copy.
struct WholeArgs : GramArgs {
  explicit WholeArgs(GramArgs given) : GramArgs(std::move(given)) {
    words = whole_rows(words);
    if (y_words) {
      y_words = whole_rows(*y_words);
    }
  }
};

// Returns bytes (n, d) as the kernels read them, with rows on 16-byte boundaries and zeros behind the last column. If x
// already is like that, it returns x itself.
inline Tensor padded_bytes(const Tensor& x) {
  const int64_t bytes = (x.size(1) + 15) / 16 * 16;
  const bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.stride(0) % 16 == 0;
  if (bytes == x.size(1) && x.stride(1) == 1 && aligned && !rows_overlap(x, bytes)) {
    return x;
  }
  Tensor padded = torch::stable::new_zeros(x, {x.size(0), bytes});
  Tensor filled = torch::stable::narrow(padded, 1, 0, x.size(1));
  torch::stable::copy_(filled, x);
  return padded;
}

// Returns a view of the memory, with which autograd never records anything.
inline Tensor detached(const Tensor& t) {
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < t.dim(); ++d) {
    sizes.push_back(t.size(d));
    strides.push_back(t.stride(d));
  }
  return torch::stable::from_blob(const_cast<void*>(t.const_data_ptr()), sizes, strides, t.device(), t.scalar_type());
}

// Returns rows [row, row + rows) of t.
inline Tensor slice_rows(const Tensor& t, int64_t row, int64_t rows) {
  Tensor source = t;
  return torch::stable::narrow(source, 0, row, rows);
}

// Returns how many rows a panel of `cols` columns has.
inline int64_t panel_rows(int64_t cols) {
  return std::max(kPanelRows, kPanelBytes / (8 * std::max<int64_t>(cols, 1)) / kPanelRows * kPanelRows);
}

// Computes out = a b. All three have one dtype.
inline void mm(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(a), torch::stable::detail::from(b), torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // This takes over the returned reference.
}

// Computes out = X Y^T by torch, in out's dtype. For uint8 rows the product is exact in float64 and rounded once. This
// is for more columns than the kernels multiply.
inline void sigma_into(const Tensor& x, const Tensor& y, Tensor& out) {
  if (x.scalar_type() != ScalarType::Byte) {
    const Tensor left = torch::stable::to(detached(x), out.scalar_type());
    const Tensor right = torch::stable::to(detached(y), out.scalar_type());
    mm(left, torch::stable::transpose(right, 0, 1), detached(out));
    return;
  }
  const Tensor right = torch::stable::transpose(torch::stable::to(detached(y), ScalarType::Double), 0, 1);
  const int64_t step = panel_rows(out.size(1));
  for (int64_t i = 0; i < out.size(0); i += step) {
    const int64_t rows = std::min(step, out.size(0) - i);
    const Tensor left = torch::stable::to(slice_rows(detached(x), i, rows), ScalarType::Double);
    Tensor part = slice_rows(detached(out), i, rows);
    torch::stable::copy_(part, torch::stable::matmul(left, right));
  }
}

}  // namespace gatedops::cuda
