// Rows as the kernels' copies step through them: each begins at least a row behind the one before. Those of an expanded
// tensor, which all begin at the same place, do not.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <utility>

#include "gram/args.h"

namespace gatedops::cuda {

inline bool rows_overlap(const Tensor& t, int64_t row) {
  return t.size(0) > 1 && t.stride(0) < row;
}

// Gives t, or a copy of it when its rows overlap.
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

// Bytes (n, d) as the kernels read them: rows on 16-byte boundaries, zeros behind the last column. x itself where it
// is.
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

}  // namespace gatedops::cuda
