// Sigma of uint8 rows, which is an exact integer, rounded once.
#include <algorithm>

#include "source.h"

namespace gatedops::cpu {
namespace {

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

// Packs columns k to k + depth of a group of 16 rows, which begins at row `first` of m and of the tiles' `row`.
void pack_group(const Matrix& m, int64_t first, int64_t k, int64_t depth, int64_t row, ByteTiles& tiles) {
  std::vector<uint8_t> bytes(static_cast<size_t>(m.col_stride == 1 ? 0 : depth));
  const int64_t rows = std::min<int64_t>(kGroupRows, m.rows - first);
  for (int64_t i = 0; i < rows; ++i) {
    const auto* from = reinterpret_cast<const uint8_t*>(m.data) + (first + i) * m.row_stride + k * m.col_stride;
    for (size_t c = 0; c < bytes.size(); ++c) {
      bytes[c] = from[static_cast<int64_t>(c) * m.col_stride];
    }
    tiles.write(row + i, 0, bytes.empty() ? from : bytes.data(), depth);
  }
  tiles.finish(row / kGroupRows, active_kernels<TileKernels>().turn_registers);
}

// The exact Sigma of uint8 rows on registers for tiles of bytes, rounded once. It packs all rows at the start if they
// take little memory or the caller allows it, else the rows and some columns of each tile.
template <class T>
class TiledBytesSigma final : public SigmaSource<T> {
 public:
  TiledBytesSigma(const Tensor& x, const Tensor& y, bool may_copy) : x_(x), y_(y) {
    const int64_t bytes = (x_.rows + y_.rows) * x_.cols;
    if (!may_copy && bytes > kLittle) {
      return;
    }
    all_x_ = packed(x_, TileSide::kX);
    all_y_ = packed(y_, TileSide::kY);
    has_all_ = true;
  }

  void reserve(SigmaScratch<T>& s) const override {
    s.part32.resize(kTile * kTileStride);
    if (x_.cols > depth()) {
      s.exact.resize(kTile * kTileStride);
    }
    if (!has_all_) {
      s.x_tiles = {TileSide::kX, kTile, std::min(depth(), x_.cols), 1};
      s.y_tiles = {TileSide::kY, kTile, std::min(depth(), x_.cols), 1};
    }
  }

  void fill(const TileRect& tile, SigmaScratch<T>& s, T* sigma) const override {
    std::fill(s.exact.begin(), s.exact.end(), 0);
    int64_t k = 0;
    do {
      multiply_columns(tile, k, std::min(depth(), x_.cols - k), s);
      each_row(tile, [&](int at) {
        for (int e = at; e < at + tile.cols; ++e) {
          if (s.exact.empty()) {
            sigma[e] = static_cast<T>(s.part32[e]);
          } else {
            s.exact[e] += s.part32[e];
          }
        }
      });
      k += depth();
    } while (k < x_.cols);
    if (!s.exact.empty()) {
      each_row(tile, [&](int at) {
        std::transform(s.exact.begin() + at, s.exact.begin() + at + tile.cols, sigma + at, [](int64_t sum) {
          return static_cast<T>(sum);
        });
      });
    }
  }

 private:
  // Rows of at most this many bytes are packed all at once.
  static constexpr int64_t kLittle = int64_t{16} << 20;
  // This many columns of a tile are packed at a time: 512 KiB a side.
  static constexpr int64_t kPacked = 2048;

  // Returns how many columns are multiplied at a time.
  int64_t depth() const {
    return has_all_ ? kMostSteps * kStepBytes : kPacked;
  }

  // Sets s.part32 to the products of columns k to k + depth.
  void multiply_columns(const TileRect& tile, int64_t k, int64_t depth, SigmaScratch<T>& s) const {
    const int64_t steps = (depth + kStepBytes - 1) / kStepBytes;
    if (has_all_) {
      multiply_(all_x_, all_y_, {tile.i, tile.j, tile.rows, tile.cols, k / kStepBytes, steps}, s.part32.data());
      return;
    }
    pack_tile(x_, tile.i, tile.rows, k, depth, s.x_tiles);
    pack_tile(y_, tile.j, tile.cols, k, depth, s.y_tiles);
    multiply_(s.x_tiles, s.y_tiles, {0, 0, tile.rows, tile.cols, 0, steps}, s.part32.data());
  }

  static void pack_tile(const Matrix& m, int64_t row, int rows, int64_t k, int64_t depth, ByteTiles& tiles) {
    for (int64_t i = 0; i < rows; i += kGroupRows) {
      pack_group(m.block(0, row + rows, 0, m.cols), row + i, k, depth, i, tiles);
    }
  }

  static ByteTiles packed(const Matrix& m, TileSide side) {
    ByteTiles tiles(side, m.rows, m.cols, 1);
    torch::stable::parallel_for(0, (m.rows + kGroupRows - 1) / kGroupRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        pack_group(m, group * kGroupRows, 0, m.cols, group * kGroupRows, tiles);
      }
    });
    return tiles;
  }

  template <class Use>
  static void each_row(const TileRect& tile, const Use& use) {
    for (int i = 0; i < tile.rows; ++i) {
      use(i * kTileStride);
    }
  }

  decltype(TileKernels::multiply_bytes) multiply_ = active_kernels<TileKernels>().multiply_bytes;
  Matrix x_, y_;
  bool has_all_ = false;
  ByteTiles all_x_, all_y_;
};

}  // namespace

template <class T>
std::unique_ptr<SigmaSource<T>> byte_sigma(const Tensor& x, const Tensor& y, bool may_copy) {
  if (active_kernels<TileKernels>().multiply_bytes != nullptr) {
    return std::make_unique<TiledBytesSigma<T>>(x, y, may_copy);
  }
  return std::make_unique<IntegerSigma<T>>(x, y);
}
template std::unique_ptr<SigmaSource<float>> byte_sigma(const Tensor&, const Tensor&, bool);
template std::unique_ptr<SigmaSource<double>> byte_sigma(const Tensor&, const Tensor&, bool);

}  // namespace gatedops::cpu
