// The sources of the Sigma of a tile: torch's matrix product of rows of x and y, an exact integer product of uint8
// rows, or a given matrix (the cotangent of the Gram). Lambda alone has no Sigma.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "core/cpu/matrix.h"
#include "gram/args.h"
#include "kernels.h"

namespace gatedops::cpu {

struct TileRect {
  // The tile begins at row i and column j.
  int64_t i, j;
  int rows, cols;
  // This says that the tile lies on the diagonal of a symmetric problem.
  bool diagonal;
};

// Some columns of a tile's rows of bytes, padded with zeros to a multiple of kByteWords words.
class ByteBlock {
 public:
  void reserve(int64_t words) {
    words_ = words;
    memory_.resize(static_cast<size_t>(kTile * words + kByteWords));
  }

  // Returns columns k to k + depth of m from row i on. Keeps them for the next tile of the same rows.
  RowBlock read(const Matrix& m, int64_t i, int rows, int64_t k, int64_t depth) {
    if (i != row_ || k != column_ || rows != rows_) {
      row_ = i;
      column_ = k;
      rows_ = rows;
      auto* to = reinterpret_cast<uint8_t*>(aligned());
      const Matrix block = m.block(i, rows, k, depth);
      for (int64_t r = 0; r < rows; ++r, to += row_bytes()) {
        copy(reinterpret_cast<const uint8_t*>(block.data) + r * m.row_stride, m.col_stride, depth, to);
        std::memset(to + depth, 0, static_cast<size_t>(row_bytes() - depth));
      }
    }
    return {aligned(), words_, rows};
  }

 private:
  int64_t row_bytes() const {
    return words_ * int64_t{sizeof(uint32_t)};
  }
  uint32_t* aligned() {
    constexpr uintptr_t kLine = kByteWords * sizeof(uint32_t);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<uint32_t*>((address + kLine - 1) / kLine * kLine);
  }
  static void copy(const uint8_t* from, int64_t stride, int64_t cols, uint8_t* to) {
    if (stride == 1) {
      std::memcpy(to, from, static_cast<size_t>(cols));
      return;
    }
    for (int64_t k = 0; k < cols; ++k) {
      to[k] = from[k * stride];
    }
  }

  int64_t words_ = 0, row_ = -1, column_ = -1;
  int rows_ = 0;
  std::vector<uint32_t> memory_;
};

// The scratch memory of one worker that makes Sigma. SigmaSource::reserve sets its size.
template <class T>
struct SigmaScratch {
  std::vector<T> x, y, part;
  std::vector<float> x_float, y_float, part_float;
  ByteBlock x_bytes, y_bytes;
  std::vector<uint32_t> panel;
  std::vector<int32_t> part32;
  std::vector<int64_t> exact;
};

// This many columns of x are multiplied at a time if x has to be converted first: 256 KiB of float32 a side.
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

// The exact Sigma of uint8 rows, rounded once: <x, y> = <x, y - 128> + 128 sum x. The instruction set's own product of
// bytes is exact in int32. Without one, the product of some columns is exact in float32, since its partial sums are
// integers below 2^24. (aten::_int_mm saturates on CPUs without VNNI.)
template <class T>
class IntegerSigma final : public SigmaSource<T> {
 public:
  IntegerSigma(const Tensor& x, const Tensor& y) : x_(x), y_(y), row_sums_(static_cast<size_t>(x_.rows)) {
    torch::stable::parallel_for(0, x_.rows, 64, [this](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        row_sums_[i] = sum(row_of(x_, i), x_.cols, x_.col_stride);
      }
    });
  }

  void reserve(SigmaScratch<T>& s) const override {
    const auto depth = static_cast<size_t>(std::min(max_depth(), x_.cols));
    if (max_depth() < x_.cols) {
      s.exact.resize(kTile * kTileStride);
    }
    if (has_bytes_) {
      const int64_t words = words_of(static_cast<int64_t>(depth));
      s.x_bytes.reserve(words);
      s.y_bytes.reserve(words);
      s.panel.resize(static_cast<size_t>(kTile * words + kByteWords));
      s.part32.resize(kTile * kTileStride);
    } else {
      s.x_float.resize(kTile * depth);
      s.y_float.resize(kTile * depth);
      s.part_float.resize(kTile * kTileStride);
    }
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    if (x_.cols <= max_depth()) {  // all of Sigma fits int32
      add_products<int32_t>(tile, 0, s, [=](int e, int32_t product) { sigma[e] = static_cast<T>(product); });
      return;
    }
    std::fill(s.exact.begin(), s.exact.end(), 0);
    for (int64_t k = 0; k < x_.cols; k += max_depth()) {
      add_products<int64_t>(tile, k, s, [&s](int e, int64_t product) { s.exact[e] += product; });
    }
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        sigma[i * kTileStride + j] = static_cast<T>(s.exact[i * kTileStride + j]);
      }
    }
  }

 private:
  static constexpr int64_t kMaxBytes = 2048;  // a tile's rows take 512 KiB; 2048 * 255 * 255 < 2^31
  static constexpr int64_t kMaxFloats = 512;  // 512 * 255 * 128 < 2^24

  // Returns how many columns are multiplied at a time.
  int64_t max_depth() const {
    return has_bytes_ ? kMaxBytes : kMaxFloats;
  }

  // Returns the words of a row of `depth` bytes.
  static int64_t words_of(int64_t depth) {
    constexpr int64_t kBytes = kByteWords * int64_t{sizeof(uint32_t)};
    return (depth + kBytes - 1) / kBytes * kByteWords;
  }

  static const uint8_t* row_of(const Matrix& m, int64_t i) {
    return reinterpret_cast<const uint8_t*>(m.data) + i * m.row_stride;
  }

  static int64_t sum(const uint8_t* row, int64_t cols, int64_t stride) {
    int64_t total = 0;
    for (int64_t k = 0; k < cols; ++k) {
      total += row[k * stride];
    }
    return total;
  }

  // Calls add(element, product of max_depth() columns from the k-th on) for the elements of a tile. The product of the
  // first columns contains the correction of the whole row.
  template <class Exact, class Add>
  void add_products(const TileRect& tile, int64_t k, SigmaScratch<T>& s, const Add& add) const {
    if (has_bytes_) {
      add_parts<Exact>(tile, k, dot_bytes(tile, k, s), add);
    } else {
      add_parts<Exact>(tile, k, dot_floats(tile, k, s), add);
    }
  }

  template <class Exact, class Part, class Add>
  void add_parts(const TileRect& tile, int64_t k, const Part* part, const Add& add) const {
    for (int i = 0; i < tile.rows; ++i) {
      const auto correction = static_cast<Exact>(k == 0 ? 128 * row_sums_[tile.i + i] : 0);
      for (int j = 0; j < tile.cols; ++j) {
        const int e = i * kTileStride + j;
        add(e, static_cast<Exact>(static_cast<int32_t>(part[e])) + correction);
      }
    }
  }

  const int32_t* dot_bytes(const TileRect& tile, int64_t k, SigmaScratch<T>& s) const {
    const int64_t depth = std::min(kMaxBytes, x_.cols - k);
    kernels_.dot_bytes(
        s.x_bytes.read(x_, tile.i, tile.rows, k, depth), s.y_bytes.read(y_, tile.j, tile.cols, k, depth),
        static_cast<int>(words_of(depth)), s.panel.data(), s.part32.data());
    return s.part32.data();
  }

  const float* dot_floats(const TileRect& tile, int64_t k, SigmaScratch<T>& s) const {
    const int64_t depth = std::min(kMaxFloats, x_.cols - k);
    copy_floats(x_.block(tile.i, tile.rows, k, depth), 0, s.x_float.data());
    copy_floats(y_.block(tile.j, tile.cols, k, depth), 128, s.y_float.data());
    mm(Matrix::of(s.x_float.data(), tile.rows, depth, depth),
       Matrix::of(s.y_float.data(), tile.cols, depth, depth).transposed(),
       Matrix::of(s.part_float.data(), tile.rows, tile.cols, kTileStride));
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

  const TileKernels& kernels_ = active_kernels<TileKernels>();
  bool has_bytes_ = kernels_.dot_bytes != nullptr;
  Matrix x_, y_;
  std::vector<int64_t> row_sums_;
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

// Returns where the Sigma of a Gram comes from, by its arguments, or null if it has none.
template <class T>
std::unique_ptr<SigmaSource<T>> sigma_source(const GramArgs& args) {
  if (!args.x) {
    return nullptr;
  }
  if (args.x->scalar_type() == ScalarType::Byte) {
    return std::make_unique<IntegerSigma<T>>(*args.x, args.right());
  }
  return std::make_unique<MatmulSigma<T>>(*args.x, args.right());
}

}  // namespace gatedops::cpu
