// Computes out += tile * v by torch's matrix product, for tiles that are made and used in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "core/cpu/matrix.h"

namespace gatedops::cpu {

// This many columns of v are multiplied at a time.
constexpr int64_t kColumns = 512;

// Returns how many columns the matrix product gets: BLAS is several times slower on 2 to 15 columns than on 16.
inline int64_t padded(int64_t columns) {
  return columns == 1 ? 1 : (columns + 15) / 16 * 16;
}

template <class T>
struct ProductScratch {
  ProductScratch(int64_t edge, int64_t columns)
      : right(static_cast<size_t>(edge * padded(std::min(kColumns, columns)))), part(right.size()) {}
  std::vector<T> right, part;
};

// Adds a part (n, width) of a product, with `stride` elements between rows, to columns of out from column c on.
template <class Out, class T>
void add_part(const T* part, int64_t rows, int64_t width, int64_t stride, const Matrix& out, int64_t c) {
  for (int64_t i = 0; i < rows; ++i) {
    Out* to = reinterpret_cast<Out*>(out.data) + i * out.row_stride + c;
    for (int64_t j = 0; j < width; ++j) {
      to[j] += part[i * stride + j];
    }
  }
}

// Adds tile (n x m) v (m, c) to out (n, c), by torch's matrix product in T. v may be of another dtype. out is of T or
// in double.
template <class T>
void accumulate(const Matrix& tile, const Matrix& v, const Matrix& out, ProductScratch<T>& s) {
  for (int64_t c = 0; c < out.cols; c += kColumns) {
    const int64_t width = std::min(kColumns, out.cols - c), stride = padded(width);
    Matrix right = v.block(0, v.rows, c, width);
    if (width < stride || v.dtype != scalar_type_of<T>()) {
      right = Matrix::of(s.right.data(), v.rows, stride, stride);
      convert(v.block(0, v.rows, c, width), right.block(0, v.rows, 0, width));
    }
    mm(tile, right, Matrix::of(s.part.data(), tile.rows, stride, stride));
    if (out.dtype == scalar_type_of<T>()) {
      add_part<T>(s.part.data(), tile.rows, width, stride, out, c);
    } else {
      add_part<double>(s.part.data(), tile.rows, width, stride, out, c);
    }
  }
}

}  // namespace gatedops::cpu
