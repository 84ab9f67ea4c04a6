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
  std::vector<float> x_float, y_float, part_float;
  std::vector<uint32_t> x_bytes, y_bytes, panel;
  std::vector<int32_t> part32;
  std::vector<int64_t> exact;
};

// Columns of x multiplied at a time where x has to be converted first: 256 KiB of float32 a side.
constexpr int64_t kDepth = 256;

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

// Exact Sigma of uint8 rows, rounded once: <x, y> = <x, y - 128> + 128 sum x. The product of some
// columns is exact in int32, by the instruction set's own product of bytes, or in float32: its partial
// sums are integers below 2^24. (aten::_int_mm saturates on CPUs without VNNI.)
template <class T>
class IntegerSigma final : public SigmaSource<T> {
 public:
  IntegerSigma(const Tensor& x, const Tensor& y) : x_(x), y_(y) {}

  void reserve(SigmaScratch<T>& s) const override {
    const auto depth = static_cast<size_t>(std::min(kExactDepth, x_.cols));
    s.exact.resize(kTile * kTileStride);
    if (tile_kernels().dot_bytes != nullptr) {
      s.x_bytes.resize(kTile * (depth + 3) / 4);
      s.y_bytes.resize(s.x_bytes.size());
      s.panel.resize(s.x_bytes.size());
      s.part32.resize(kTile * kTileStride);
    } else {
      s.x_float.resize(kTile * depth);
      s.y_float.resize(kTile * depth);
      s.part_float.resize(kTile * kTileStride);
    }
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    std::fill(s.exact.begin(), s.exact.end(), 0);
    for (int64_t k = 0; k < x_.cols; k += kExactDepth) {
      const int64_t depth = std::min(kExactDepth, x_.cols - k);
      const Matrix x = x_.block(tile.i, tile.rows, k, depth), y = y_.block(tile.j, tile.cols, k, depth);
      if (tile_kernels().dot_bytes != nullptr) {
        add(tile, x, dot_bytes(x, y, s), s.exact.data());
      } else {
        add(tile, x, dot_floats(x, y, s), s.exact.data());
      }
    }
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        sigma[i * kTileStride + j] = static_cast<T>(s.exact[i * kTileStride + j]);
      }
    }
  }

 private:
  static constexpr int64_t kExactDepth = 512;  // 512 * 255 * 128 < 2^24

  static const uint8_t* row_of(const Matrix& m, int64_t i) {
    return reinterpret_cast<const uint8_t*>(m.data) + i * m.row_stride;
  }

  static const int32_t* dot_bytes(const Matrix& x, const Matrix& y, SigmaScratch<T>& s) {
    const int64_t words = (x.cols + 3) / 4;
    copy_bytes(x, 0, words, s.x_bytes.data());
    copy_bytes(y, 0x80, words, s.y_bytes.data());  // y ^ 0x80 read as signed is y - 128
    tile_kernels().dot_bytes(
        {s.x_bytes.data(), words, static_cast<int>(x.rows)}, {s.y_bytes.data(), words, static_cast<int>(y.rows)},
        s.panel.data(), s.part32.data());
    return s.part32.data();
  }

  // Rows of bytes, each XOR flip, padded with zeros to whole words.
  static void copy_bytes(const Matrix& m, uint8_t flip, int64_t words, uint32_t* to) {
    auto* bytes = reinterpret_cast<uint8_t*>(to);
    for (int64_t i = 0; i < m.rows; ++i, bytes += 4 * words) {
      const uint8_t* row = row_of(m, i);
      for (int64_t k = 0; k < m.cols; ++k) {
        bytes[k] = static_cast<uint8_t>(row[k * m.col_stride] ^ flip);
      }
      std::fill(bytes + m.cols, bytes + 4 * words, uint8_t{0});
    }
  }

  static const float* dot_floats(const Matrix& x, const Matrix& y, SigmaScratch<T>& s) {
    copy_floats(x, 0, s.x_float.data());
    copy_floats(y, 128, s.y_float.data());
    mm(Matrix::of(s.x_float.data(), x.rows, x.cols, x.cols),
       Matrix::of(s.y_float.data(), y.rows, y.cols, y.cols).transposed(),
       Matrix::of(s.part_float.data(), x.rows, y.rows, kTileStride));
    return s.part_float.data();
  }

  static void copy_floats(const Matrix& m, int minus, float* to) {
    for (int64_t i = 0; i < m.rows; ++i) {
      const uint8_t* row = row_of(m, i);
      for (int64_t k = 0; k < m.cols; ++k) {
        to[i * m.cols + k] = static_cast<float>(static_cast<int>(row[k * m.col_stride]) - minus);
      }
    }
  }

  // exact += part + 128 sum x.
  template <class Part>
  static void add(const TileRect& tile, const Matrix& x, const Part* part, int64_t* exact) {
    for (int i = 0; i < tile.rows; ++i) {
      const uint8_t* row = row_of(x, i);
      int64_t sum = 0;
      for (int64_t k = 0; k < x.cols; ++k) {
        sum += row[k * x.col_stride];
      }
      for (int j = 0; j < tile.cols; ++j) {
        const int e = i * kTileStride + j;
        exact[e] += static_cast<int64_t>(part[e]) + 128 * sum;
      }
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
    convert(g_.block(tile.i, tile.rows, tile.j, tile.cols), Matrix::of(sigma, tile.rows, tile.cols, kTileStride));
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
