// The sources of the Sigma of a tile. Lambda alone has no Sigma.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "byte_tiles.h"
#include "core/cpu/matrix.h"
#include "gram/args.h"
#include "gram/cpu/kernels.h"

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
  ByteTiles x_tiles, y_tiles;
  std::vector<uint32_t> panel;
  std::vector<int32_t> part32;
  std::vector<int64_t> exact;
};

template <class T>
class SigmaSource {
 public:
  virtual ~SigmaSource() = default;
  virtual void reserve(SigmaScratch<T>&) const {}
  // Writes Sigma of the tile, row-major with kTileStride.
  virtual void fill(const TileRect& tile, SigmaScratch<T>& scratch, T* sigma) const = 0;
};

// Returns the Sigma of x y^T by torch's matrix product, with rows of any float dtype.
template <class T>
std::unique_ptr<SigmaSource<T>> float_sigma(const Tensor& x, const Tensor& y);

// Returns the exact Sigma of uint8 rows, rounded once. `may_copy` allows it to keep a copy of both sides.
template <class T>
std::unique_ptr<SigmaSource<T>> byte_sigma(const Tensor& x, const Tensor& y, bool may_copy);

// Returns the Sigma of float32 rows by digits of 8 bits, or null if this CPU has no fast product of them or the rows do
// not allow it.
std::unique_ptr<SigmaSource<float>> digit_sigma(const Tensor& x, const Tensor& y);

// Returns a Sigma whose tiles are those of a given matrix g, or of g + g^T if the problem is symmetric.
template <class T>
std::unique_ptr<SigmaSource<T>> given_sigma(const Tensor& g, bool symmetric);

// Returns where the Sigma of a Gram comes from, by its arguments, or null if it has none. `may_copy` allows it to keep
// a copy of both sides.
template <class T>
std::unique_ptr<SigmaSource<T>> sigma_source(const GramArgs& args, bool may_copy = false) {
  if (!args.x) {
    return nullptr;
  }
  const bool bytes = args.x->scalar_type() == ScalarType::Byte;
  return bytes ? byte_sigma<T>(*args.x, args.right(), may_copy) : float_sigma<T>(*args.x, args.right());
}

}  // namespace gatedops::cpu
