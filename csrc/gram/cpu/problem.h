// The counts of a Gram: two sets of packed rows, the layers selected from them, and the tile grid over all pairs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "core/cpu/parallel.h"
#include "gram/args.h"
#include "gram/cpu/sigma/source.h"
#include "kernels.h"

namespace gatedops::cpu {

// Rows of words, as GateBits holds them.
class PackedRows {
 public:
  explicit PackedRows(const Tensor& words)
      : words_(static_cast<const uint32_t*>(words.const_data_ptr())), rows_(words.size(0)), stride_(words.stride(0)) {}

  int64_t rows() const {
    return rows_;
  }
  const uint32_t* row(int64_t i) const {
    return words_ + i * stride_;
  }
  // Returns the words between two rows.
  int64_t stride() const {
    return stride_;
  }
  RowBlock block(int64_t i, int rows) const {
    return {row(i), stride_, rows};
  }

 private:
  const uint32_t* words_;
  int64_t rows_, stride_;
};

// The layers with two slopes, and how many of their gates are on in each row of both sides, counted once for all tiles.
class Slopes {
 public:
  Slopes(const GramArgs& args, const TileKernels& kernels, const PackedRows& x, const PackedRows& y)
      : n_(x.rows()), m_(y.rows()) {
    if (args.has_slopes()) {
      slope_ = args.slope;
      widths_ = args.widths;
      x_on_ = on_counts(kernels, x, args.layers.first, args.layers.count);
      y_on_ = args.y_words ? on_counts(kernels, y, args.layers.y_first, args.layers.count) : x_on_;
    }
  }

  bool any() const {
    return !slope_.empty();
  }
  bool has(int layer) const {
    return any() && slope_[layer] != 0;
  }

  // Returns a layer for the rows and columns of a block.
  template <class T>
  SlopedLayer<T> layer(int l, T scale, const TileRect& block) const {
    auto layer = SlopedLayer<T>::of(slope_[l], scale, widths_[l]);
    layer.first = l == 0;
    layer.x_on = x_on_.data() + l * n_ + block.i;
    layer.y_on = y_on_.data() + l * m_ + block.j;
    return layer;
  }

 private:
  // Returns the counts of one layer after those of another.
  static std::vector<int32_t> on_counts(
      const TileKernels& kernels, const PackedRows& rows, const std::vector<int64_t>& first,
      const std::vector<int64_t>& count) {
    std::vector<int32_t> on(count.size() * static_cast<size_t>(rows.rows()));
    torch::stable::parallel_for(0, rows.rows(), 64, [&](int64_t begin, int64_t end) {
      std::vector<int32_t> of_row(count.size());
      for (int64_t i = begin; i < end; ++i) {
        kernels.row_counts(rows.row(i), first.data(), count.data(), static_cast<int>(count.size()), of_row.data());
        for (size_t l = 0; l < count.size(); ++l) {
          on[l * static_cast<size_t>(rows.rows()) + static_cast<size_t>(i)] = of_row[l];
        }
      }
    });
    return on;
  }

  std::vector<double> slope_;
  std::vector<int64_t> widths_;
  std::vector<int32_t> x_on_, y_on_;
  int64_t n_, m_;
};

class GramProblem {
 public:
  // The problem is symmetric if y_words is absent. whole_tiles says that a tile is wanted whole, after its blocks.
  explicit GramProblem(const GramArgs& args, bool whole_tiles = false)
      : kernels(fastest_kernels_for(total_words(args.layers), static_cast<int64_t>(args.layers.count.size()))),
        x(args.words),
        y(args.y_words ? *args.y_words : args.words),
        symmetric(!args.y_words),
        whole_tiles(whole_tiles),
        slopes(args, kernels, x, y) {
    cut_layers(args.layers);
    const int64_t largest = std::max(x.rows(), y.rows());
    edge = largest >= 8 * kTile ? kTile : largest > kTile / 4 ? kTile / 2 : kTile / 4;
  }

  int64_t row_tiles() const {
    return (x.rows() + edge - 1) / edge;
  }
  int64_t col_tiles() const {
    return (y.rows() + edge - 1) / edge;
  }
  int64_t tiles() const {
    const int64_t n = row_tiles();
    return symmetric ? n * (n + 1) / 2 : n * col_tiles();
  }

  // Returns tile t of the grid. A symmetric problem has only the tiles of the lower triangle, row by row.
  TileRect tile(int64_t t) const {
    if (!symmetric) {
      return rect(t / col_tiles(), t % col_tiles());
    }
    auto row = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2.0);
    while (row * (row + 1) / 2 > t) {
      --row;
    }
    while ((row + 1) * (row + 2) / 2 <= t) {
      ++row;
    }
    return rect(row, t - row * (row + 1) / 2);
  }

  TileRect rect(int64_t row_tile, int64_t col_tile) const {
    const int64_t i = row_tile * edge, j = col_tile * edge;
    return {
        i, j, static_cast<int>(std::min(edge, x.rows() - i)), static_cast<int>(std::min(edge, y.rows() - j)),
        symmetric && row_tile == col_tile};
  }

  // Tells whether a block of a tile is made only when it is asked for. Otherwise the whole tile is made at once, in
  // its place in the buffer.
  bool by_block() const {
    return words <= kernels.panel_words && kernels.by_block && !whole_tiles;
  }

  // Returns the words of a packed panel for each column.
  int64_t stride_of(const PieceRange& panel) const {
    return int64_t{panel.words()} * kernels.planes;
  }

  // Returns the words that a worker has packed at a time for each column.
  size_t packed_stride() const {
    return static_cast<size_t>(packed_words) * static_cast<size_t>(kernels.planes);
  }

  const TileKernels& kernels;
  PackedRows x, y;
  bool symmetric, whole_tiles;
  Slopes slopes;
  // A tile has this many rows and columns. The number depends on the shape only, never on the threads.
  int64_t edge;
  // The pieces are in the order of the layers.
  std::vector<LayerPiece> pieces;
  // Each entry has the consecutive pieces that share one packed panel. If there are slopes, a panel has one piece,
  // because a layer with two slopes is counted alone.
  std::vector<PieceRange> panels;
  // All layers together have this many words.
  int64_t words = 0;
  // A worker has this many of them packed at a time: those of the largest panel or, by block, all of them.
  int64_t packed_words = 0;
  size_t layers = 0;

 private:
  static int64_t total_words(const Selection& s) {
    return std::accumulate(s.count.begin(), s.count.end(), int64_t{0});
  }

  void cut_layers(const Selection& s) {
    layers = s.count.size();
    for (size_t l = 0; l < layers; ++l) {
      for (int64_t k = 0; k < s.count[l]; k += kernels.piece_words) {
        LayerPiece piece{};
        piece.layer = static_cast<int>(l);
        piece.first = s.first[l] + k;
        piece.y_first = s.y_first[l] + k;
        piece.words = static_cast<int>(std::min<int64_t>(kernels.piece_words, s.count[l] - k));
        piece.opens = k == 0;
        piece.closes = k + piece.words == s.count[l];
        pieces.push_back(std::move(piece));
      }
    }
    words = total_words(s);
    const LayerPiece* end = pieces.data() + pieces.size();
    for (const LayerPiece* p = pieces.data(); p != end;) {
      PieceRange panel = PieceRange::only(p, static_cast<int>(panels.size()));
      int in_panel = p->words;
      while (!slopes.any() && panel.end != end && in_panel + panel.end->words <= kernels.panel_words) {
        in_panel += (panel.end++)->words;
      }
      panels.push_back(panel);
      packed_words = by_block() ? words : std::max<int64_t>(packed_words, in_panel);
      p = panel.end;
    }
  }
};

// The workspace of the kernels. Only the first kZeroed bytes are zeroed; the rest is left untouched, so unused pages
// cost nothing.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes == 0 ? nullptr : new std::byte[bytes + kZeroed + kAlign]) {
    if (bytes_) {
      std::memset(aligned(), 0, kZeroed);
    }
  }
  void* aligned() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes_.get()) + kAlign - 1) / kAlign * kAlign);
  }

 private:
  static constexpr size_t kAlign = 64;
  std::unique_ptr<std::byte[]> bytes_;
};

// The buffers of one worker: at most about 1.5 MiB in float32 and 2 MiB in float64. Counts are needed only if a layer
// comes in several pieces or has two slopes.
template <class T>
struct TileBuffers {
  TileBuffers(const GramProblem& p, bool needs_counts)
      : product(static_cast<size_t>(p.edge) * kTileStride),
        counts(needs_counts ? static_cast<size_t>(p.edge) * kTileStride : 0),
        panel(static_cast<size_t>(p.edge) * p.packed_stride()),
        work(p.kernels.workspace) {}

  std::vector<T> product;
  std::vector<int32_t> counts;
  std::vector<uint32_t> panel;
  Workspace work;
  std::vector<T> sigma;
  // This holds a tile whose blocks are put together again, for matrix products.
  std::vector<T> whole;
  // This holds a transposed block.
  std::vector<T> turned;
  // These hold the sums of a tile's products with few columns.
  std::vector<double> by_rows, by_columns;
  SigmaScratch<T> scratch;
};

template <class T>
std::vector<TileBuffers<T>> worker_buffers(const GramProblem& p, const SigmaSource<T>* sigma) {
  std::vector<TileBuffers<T>> buffers;
  const bool needs_counts = p.pieces.size() > p.layers || p.slopes.any();
  for (int64_t w = 0; w < workers(); ++w) {
    buffers.emplace_back(p, needs_counts);
    if (sigma != nullptr) {
      buffers.back().sigma.resize(buffers.back().product.size());
      sigma->reserve(buffers.back().scratch);
    }
  }
  return buffers;
}

template <class T>
void run_product(
    const TileKernels& k, const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower,
    const T* scale, TileBuffers<T>& b) {
  if constexpr (sizeof(T) == sizeof(float)) {
    k.product_f32(x, panel, cols, pieces, lower, scale, b.counts.data(), b.product.data(), b.work.aligned());
  } else {
    k.product_f64(x, panel, cols, pieces, lower, scale, b.counts.data(), b.product.data(), b.work.aligned());
  }
}

template <class T>
void run_weigh(const TileKernels& k, const SlopedLayer<T>& layer, const TileRect& rect, TileBuffers<T>& b) {
  if constexpr (sizeof(T) == sizeof(float)) {
    k.weigh_f32(b.counts.data(), layer, rect.rows, rect.cols, rect.diagonal, b.product.data());
  } else {
    k.weigh_f64(b.counts.data(), layer, rect.rows, rect.cols, rect.diagonal, b.product.data());
  }
}

// Copies the half of a diagonal block below its diagonal to the half above it, which is not computed.
template <class T>
void mirror(const TileRect& block, T* values) {
  for (int i = 0; i < block.rows; ++i) {
    for (int j = 0; j < i; ++j) {
      values[j * kTileStride + i] = values[i * kTileStride + j];
    }
  }
}

template <class T>
void multiply(const TileRect& block, const T* sigma, T* values) {
  for (int i = 0; i < block.rows; ++i) {
    for (int j = 0; j < block.cols; ++j) {
      values[i * kTileStride + j] = sigma[i * kTileStride + j] * values[i * kTileStride + j];
    }
  }
}

// Lambda of one tile, a block at a time. If all layers fit one panel and the kernels work by block, a block is made
// when it is asked for, in the same few rows of the product buffer, and is used while it lies in the L1 cache.
template <class T>
class TileLambda {
 public:
  TileLambda(const GramProblem& p, const TileRect& tile, const std::vector<T>& scale, TileBuffers<T>& b)
      : p_(p), tile_(tile), scale_(scale), b_(b) {
    each_panel([&](const PieceRange& panel, uint32_t* packed) {
      p.kernels.pack_panel(p.y.block(tile.j, tile.cols), panel, packed);
      if (!p_.by_block()) {
        run(panel, packed, tile);
      }
    });
  }

  // Returns the block of `rect`, which begins at row i and column j of the tile.
  T* block(const TileRect& rect, int i, int j) const {
    if (!p_.by_block()) {
      return b_.product.data() + i * kTileStride + j;
    }
    each_panel(
        [&](const PieceRange& panel, const uint32_t* packed) { run(panel, packed + j * p_.stride_of(panel), rect); });
    return b_.product.data();
  }

 private:
  // Calls use(panel, packed) with the place of each packed panel. By block, each panel has a place of its own.
  template <class Use>
  void each_panel(const Use& use) const {
    uint32_t* packed = b_.panel.data();
    for (const PieceRange& panel : p_.panels) {
      use(panel, packed);
      packed += p_.by_block() ? p_.edge * p_.stride_of(panel) : 0;
    }
  }

  // Multiplies the product of a rectangle by the layers of a panel. `packed` begins with the rectangle's first column.
  void run(const PieceRange& panel, const uint32_t* packed, const TileRect& rect) const {
    const RowBlock x = p_.x.block(rect.i, rect.rows);
    const LayerPiece& piece = *panel.begin;
    if (!p_.slopes.has(piece.layer)) {
      run_product(p_.kernels, x, packed, rect.cols, panel, rect.diagonal, scale_.data(), b_);
      return;
    }
    p_.kernels.count(x, packed, rect.cols, panel, rect.diagonal, b_.counts.data(), b_.work.aligned());
    if (piece.closes) {
      run_weigh(p_.kernels, p_.slopes.layer(piece.layer, scale_[piece.layer], rect), rect, b_);
    }
  }

  const GramProblem& p_;
  const TileRect& tile_;
  const std::vector<T>& scale_;
  TileBuffers<T>& b_;
};

// Calls use(rect, values) for the blocks of a tile, or those on and below the diagonal of a diagonal tile. The values
// are Sigma * Lambda, or Lambda if sigma is null, with kTileStride.
template <class T, class Use>
void each_block(
    const GramProblem& p, const TileRect& tile, const SigmaSource<T>* sigma, const std::vector<T>& scale,
    TileBuffers<T>& b, const Use& use) {
  const TileLambda<T> lambda(p, tile, scale, b);
  if (sigma != nullptr) {
    sigma->fill(tile, b.scratch, b.sigma.data());
  }
  for (int j = 0; j < tile.cols; j += kBlock) {
    for (int i = tile.diagonal ? j : 0; i < tile.rows; i += kBlock) {
      const TileRect rect{
          tile.i + i, tile.j + j, std::min(kBlock, tile.rows - i), std::min(kBlock, tile.cols - j),
          tile.diagonal && i == j};
      T* values = lambda.block(rect, i, j);
      if (sigma != nullptr) {
        multiply(rect, b.sigma.data() + i * kTileStride + j, values);
      }
      if (rect.diagonal) {
        mirror(rect, values);
      }
      use(rect, values);
    }
  }
}

}  // namespace gatedops::cpu
