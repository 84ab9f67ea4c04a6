// Sigma by torch's matrix product, and Sigma that is given as a matrix, which the derivative of a Gram needs.
#include <algorithm>

#include "source.h"

namespace gatedops::cpu {
namespace {

// This many columns of x are multiplied at a time if x has to be converted first: 256 KiB of float32 a side.
constexpr int64_t kDepth = 256;

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

// The tile of a given matrix G, or of G + G^T if the problem is symmetric.
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

}  // namespace

template <class T>
std::unique_ptr<SigmaSource<T>> float_sigma(const Tensor& x, const Tensor& y) {
  return std::make_unique<MatmulSigma<T>>(x, y);
}
template <class T>
std::unique_ptr<SigmaSource<T>> given_sigma(const Tensor& g, bool symmetric) {
  return std::make_unique<GivenSigma<T>>(g, symmetric);
}
template std::unique_ptr<SigmaSource<float>> float_sigma(const Tensor&, const Tensor&);
template std::unique_ptr<SigmaSource<double>> float_sigma(const Tensor&, const Tensor&);
template std::unique_ptr<SigmaSource<float>> given_sigma(const Tensor&, bool);
template std::unique_ptr<SigmaSource<double>> given_sigma(const Tensor&, bool);

}  // namespace gatedops::cpu
