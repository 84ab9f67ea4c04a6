// Where the Sigma of a tile comes from: nowhere (Lambda alone), torch's matrix product of rows of x
// and y, an exact integer product of uint8 rows, or a given matrix (the cotangent of the Gram).
#pragma once

#include <cstring>
#include <vector>

#include "gram_tile.h"
#include "matrix.h"

namespace gatedops::cpu {

struct TileRect {
  int64_t i, j;  // first row and column of the tile
  int rows, cols;
  bool diagonal;  // of a symmetric problem
};

// Scratch of one worker for making Sigma; sized by SigmaSource::reserve.
template <class T>
struct SigmaScratch {
  std::vector<T> x, y, part;
  std::vector<int8_t> x8, y8;
  std::vector<int32_t> part32;
  std::vector<int64_t> exact;
};

// Columns of x multiplied at a time where x has to be converted first: 1 MiB of float32 a side.
constexpr int64_t kDepth = 1024;

template <class T>
class SigmaSource {
 public:
  virtual ~SigmaSource() = default;
  virtual void reserve(SigmaScratch<T>&) const {}
  // Writes Sigma of the tile, row-major with kTileStride.
  virtual void fill(const TileRect& tile, SigmaScratch<T>& scratch, T* sigma) const = 0;
};

template <class T>
class MatmulSigma final : public SigmaSource<T> {
 public:
  MatmulSigma(const Tensor& x, const Tensor& y) : x_(x), y_(y) {}

  void reserve(SigmaScratch<T>& s) const override {
    if (converts(x_) || converts(y_)) {
      const size_t depth = static_cast<size_t>(std::min(kDepth, x_.cols));
      s.x.resize(kTile * depth);
      s.y.resize(kTile * depth);
      s.part.resize(kTile * kTileStride);
    }
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    const Matrix out = Matrix::of(sigma, tile.rows, tile.cols, kTileStride);
    if (!converts(x_) && !converts(y_)) {
      mm(x_.block(tile.i, tile.rows, 0, x_.cols), y_.block(tile.j, tile.cols, 0, y_.cols).transposed(), out);
      return;
    }
    if (x_.cols == 0) {
      clear(tile, sigma);
    }
    for (int64_t k = 0; k < x_.cols; k += kDepth) {
      const int64_t depth = std::min(kDepth, x_.cols - k);
      const Matrix a = Matrix::of(s.x.data(), tile.rows, depth, depth);
      const Matrix b = Matrix::of(s.y.data(), tile.cols, depth, depth);
      convert(x_.block(tile.i, tile.rows, k, depth), a);
      convert(y_.block(tile.j, tile.cols, k, depth), b);
      mm(a, b.transposed(), k == 0 ? out : Matrix::of(s.part.data(), tile.rows, tile.cols, kTileStride));
      if (k > 0) {
        accumulate(tile, s.part.data(), sigma);
      }
    }
  }

 private:
  static bool converts(const Matrix& m) {
    return m.dtype != scalar_type_of<T>();
  }

  static void clear(const TileRect& tile, T* sigma) {
    for (int i = 0; i < tile.rows; ++i) {
      std::fill_n(sigma + i * kTileStride, tile.cols, T(0));
    }
  }

  static void accumulate(const TileRect& tile, const T* part, T* sigma) {
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        sigma[i * kTileStride + j] += part[i * kTileStride + j];
      }
    }
  }

  Matrix x_, y_;
};

// Exact Sigma of uint8 rows: with s = x - 128 in int8, <x, y> = <s, t> + 128 (sum s + sum t) +
// 16384 d. Integer products of kDepth columns fit int32; their sum is kept in int64 and rounded once.
template <class T>
class IntegerSigma final : public SigmaSource<T> {
 public:
  IntegerSigma(const Tensor& x, const Tensor& y) : x_(x), y_(y) {}

  void reserve(SigmaScratch<T>& s) const override {
    const size_t depth = static_cast<size_t>(std::min(kDepth, x_.cols));
    s.x8.resize(kTile * depth);
    s.y8.resize(kTile * depth);
    s.part32.resize(kTile * kTileStride);
    s.exact.resize(kTile * kTileStride);
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    std::fill(s.exact.begin(), s.exact.end(), 0);
    for (int64_t k = 0; k < x_.cols; k += kDepth) {
      add_depth(tile, k, std::min(kDepth, x_.cols - k), s);
    }
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        sigma[i * kTileStride + j] = static_cast<T>(s.exact[i * kTileStride + j]);
      }
    }
  }

 private:
  void add_depth(const TileRect& tile, int64_t k, int64_t depth, SigmaScratch<T>& s) const {
    int64_t x_sum[kTile], y_sum[kTile];
    centre(x_.block(tile.i, tile.rows, k, depth), s.x8.data(), x_sum);
    centre(y_.block(tile.j, tile.cols, k, depth), s.y8.data(), y_sum);
    int_mm(
        Matrix::of(s.x8.data(), tile.rows, depth, depth),
        Matrix::of(s.y8.data(), tile.cols, depth, depth).transposed(),
        Matrix::of(s.part32.data(), tile.rows, tile.cols, tile.cols));
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        s.exact[i * kTileStride + j] +=
            s.part32[i * tile.cols + j] + 128 * (x_sum[i] + y_sum[j]) + 16384 * depth;
      }
    }
  }

  static void centre(const Matrix& x, int8_t* centred, int64_t* sum) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const auto* row = reinterpret_cast<const uint8_t*>(x.data) + i * x.row_stride;
      int32_t total = 0;
      for (int64_t k = 0; k < x.cols; ++k) {
        const int value = static_cast<int>(row[k * x.col_stride]) - 128;
        centred[i * x.cols + k] = static_cast<int8_t>(value);
        total += value;
      }
      sum[i] = total;
    }
  }

  Matrix x_, y_;
};

// The tile of a given matrix; of G + G^T where the problem is symmetric.
template <class T>
class GivenSigma final : public SigmaSource<T> {
 public:
  GivenSigma(const Tensor& g, bool symmetric) : g_(g), symmetric_(symmetric) {}

  void reserve(SigmaScratch<T>& s) const override {
    if (symmetric_) {
      s.part.resize(kTile * kTileStride);
    }
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    convert(
        g_.block(tile.i, tile.rows, tile.j, tile.cols), Matrix::of(sigma, tile.rows, tile.cols, kTileStride));
    if (!symmetric_) {
      return;
    }
    convert(
        g_.block(tile.j, tile.cols, tile.i, tile.rows).transposed(),
        Matrix::of(s.part.data(), tile.rows, tile.cols, kTileStride));
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        sigma[i * kTileStride + j] += s.part[i * kTileStride + j];
      }
    }
  }

 private:
  Matrix g_;
  bool symmetric_;
};

}  // namespace gatedops::cpu
