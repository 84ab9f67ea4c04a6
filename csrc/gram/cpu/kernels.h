// The interface between the tile grid (problem.h) and the kernels of each instruction set. A tile of the Gram is up to
// kTile x kTile pairs with all layers; one thread computes it.
#pragma once

#include <cstdint>
#include <string>

#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"
#include "gram/cpu/sigma/byte_tiles.h"

namespace gatedops::cpu {

// A tile has at most this many rows and columns.
constexpr int kTile = 256;
// A tile is finished in blocks with this edge: 16 KiB of float32, which fit the L1 cache.
constexpr int kBlock = 64;
// The rows of a tile lie this many elements apart. A power of two would alias in the L1 cache.
constexpr int kTileStride = kTile + 16;
// Up to this many columns of v our own loop beats torch's product.
constexpr int kFewColumns = 24;
// npk_product multiplies at most this many columns of v in double with a tile. For more it makes the tile again.
constexpr int64_t kMostColumns = 96;
// At most this many words of each column are packed at a time: 512 KiB for a tile.
constexpr int kPanelWords = 512;
// Outputs larger than this are written past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;
// This many bytes at the front of a workspace are zero at first.
constexpr size_t kZeroed = 128;
// Rows of bytes are padded to a multiple of this many words.
constexpr int kByteWords = 16;
// AMX beats VPOPCNTD if the layers have at least this many words on average.
constexpr int kAmxWords = 16;

// The part of a layer that is counted at a time. A layer of more words than the kernels' piece_words comes in several
// pieces; the tile's count buffer sums their counts.
struct LayerPiece {
  int layer;
  // The piece begins at word `first` of a row of x, and at word `y_first` of a row of y.
  int64_t first;
  int64_t y_first;
  int words;
  // `opens` marks the first piece of a layer, and `closes` the last one.
  bool opens;
  bool closes;

  // Makes the only piece of a layer that lies at the front of both rows.
  static constexpr LayerPiece whole(int words) {
    return {0, 0, 0, words, true, true};
  }
};

struct RowBlock {
  const uint32_t* words;
  // Rows begin this many words apart.
  int64_t stride;
  int rows;
};

// Pieces that share one packed panel, which has number `panel` in a problem.
struct PieceRange {
  const LayerPiece* begin;
  const LayerPiece* end;
  int panel;

  // Makes a panel of one piece.
  static constexpr PieceRange only(const LayerPiece* piece, int panel = 0) {
    return {piece, piece + 1, panel};
  }
  int words() const {
    int total = 0;
    for (const LayerPiece* p = begin; p != end; ++p) {
      total += p->words;
    }
    return total;
  }
};

// A layer whose activation has slope 1 where its gate is on and another slope where it is off.
template <class T>
struct SlopedLayer {
  // These are the slope and its square, computed in double.
  T slope, square;
  T scale;
  // How many gates the layer has.
  int32_t width;
  // Whether this is layer 0, which sets the product.
  bool first = true;
  // How many of the layer's gates are on in each row and in each column of a block.
  const int32_t* x_on = nullptr;
  const int32_t* y_on = nullptr;

  static SlopedLayer of(double slope, T scale, int64_t width) {
    return {static_cast<T>(slope), static_cast<T>(slope * slope), scale, static_cast<int32_t>(width)};
  }

  // Returns scale * <gamma, gamma'> of two rows that have `on` gates on together, each counted in its own row, and
  // `both` gates on in both rows. docs/math.md, section 3, has the order of the roundings.
  GATEDOPS_INLINE T factor(int32_t on, int32_t both) const {
    const int32_t differ = on - 2 * both, neither = width - both - differ;
    return (static_cast<T>(both) + (slope * static_cast<T>(differ) + square * static_cast<T>(neither))) * scale;
  }
};

// All tiles are row-major with kTileStride. `lower` skips the pairs strictly above the diagonal of a diagonal tile,
// which is mirrored afterwards.
struct TileKernels {
  // A panel interleaves this many columns. Columns of zeros pad it to a multiple of them.
  int strip;
  // A panel keeps this many words for each word of a row.
  int planes;

  // A piece has at most this many words.
  int piece_words;
  // The pieces that share a panel have at most this many words together.
  int panel_words;
  // This is true if product is as fast block by block as for a whole tile. Each block is then used while it lies in
  // the L1 cache.
  bool by_block;
  // count and product get this many bytes of memory, aligned to 64 bytes. The first kZeroed of them are zero at first.
  size_t workspace;

  // Transposes the pieces' words of up to kTile rows into a panel: [strip][word][planes of each column in strip].
  void (*pack_panel)(const RowBlock& y, PieceRange pieces, uint32_t* panel);

  // Sets counts to popcount(x AND y) over one piece, or adds it if the piece continues a layer.
  void (*count)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange piece, bool lower, int32_t* counts, void* work);

  // Multiplies product by count * scale for each layer that these pieces close; for layer 0 it sets product to that.
  // counts holds a layer that is not closed yet.
  void (*product_f32)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const float* scale,
      int32_t* counts, float* product, void* work);
  void (*product_f64)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const double* scale,
      int32_t* counts, double* product, void* work);

  // Multiplies product by the factors of a layer with two slopes, whose counts are given; for layer 0 it sets product
  // to them. `lower` is that of a diagonal tile.
  void (*weigh_f32)(const int32_t* counts, SlopedLayer<float> layer, int rows, int cols, bool lower, float* product);
  void (*weigh_f64)(const int32_t* counts, SlopedLayer<double> layer, int rows, int cols, bool lower, double* product);

  // The first two set out (rows, cols) to the tile, the others out (cols, rows) to the transposed tile. `stream` writes
  // past the caches.
  void (*store_f32)(const float* tile, int rows, int cols, float* out, int64_t stride, bool stream);
  void (*store_f64)(const double* tile, int rows, int cols, double* out, int64_t stride, bool stream);
  void (*store_transposed_f32)(const float* tile, int rows, int cols, float* out, int64_t stride, bool stream);
  void (*store_transposed_f64)(const double* tile, int rows, int cols, double* out, int64_t stride, bool stream);

  // Sets turned (cols, rows) to the transposed block. Both have room for kBlock x kBlock.
  void (*transpose)(const float* block, int rows, int cols, float* turned);

  // Adds v^T block to sums, for v (rows, columns) and sums (columns, cols) with kTile between rows. All instruction
  // sets give the same bits.
  void (*contract)(
      const float* block, int rows, int cols, const double* v, int64_t v_stride, int columns, double* sums);

  // Sets bit j of by_row[i] if block[i][j] is not less than row_limits[i]. If column_limits are given, sets bit j of
  // by_column[i] if it is not less than column_limits[j]. A block is kBlock x kBlock at most.
  void (*find_above_f32)(
      const float* block, int rows, int cols, const float* row_limits, const float* column_limits, uint64_t* by_row,
      uint64_t* by_column);
  void (*find_above_f64)(
      const double* block, int rows, int cols, const double* row_limits, const double* column_limits, uint64_t* by_row,
      uint64_t* by_column);

  // Computes out = x (y - 128)^T exactly, for rows of `words` words of four unsigned bytes. words is a multiple of
  // kByteWords, and there is memory for kTile rows. The panel has kByteWords words more than it needs. The pointer is
  // null if the instruction set has no such product.
  void (*dot_bytes)(const RowBlock& x, const RowBlock& y, int words, uint32_t* panel, int32_t* out);

  // Prepare and multiply rows of bytes and of digits (byte_tiles.h). The pointers are null unless the set has registers
  // for tiles.
  decltype(&turn_registers_on_amx) turn_registers;
  decltype(&multiply_bytes_on_amx) multiply_bytes;
  decltype(&multiply_digits_on_amx) multiply_digits;

  // Counts the gates that are on in each layer of one row.
  void (*row_counts)(const uint32_t* row, const int64_t* first, const int64_t* count, int layers, int32_t* out);
};

// Runs the innermost loop of an instruction set's tile kernel with the columns in registers, and nothing else.
struct RateLoop {
  // One round counts this many.
  int64_t bit_pairs;
  void (*run)(int64_t rounds);
};

// Returns the bit-pairs per second that this many threads count together with an instruction set's inner operations:
// the best of many short repeats in which all threads run at once. A bit-pair is one bit of one input ANDed with one
// bit of another and counted. The tile kernels do the same operations and more, so no kernel is faster.
//
// Measuring takes about 0.2 s. Throws std::invalid_argument if this machine does not run the set, or if threads is less
// than 1.
double bit_pairs_per_second(const std::string& isa, int64_t threads);

// Returns the kernels that are fastest for `layers` layers with `words` words in all. If an instruction set is forced,
// it returns the kernels of that set.
inline const TileKernels& fastest_kernels_for(int64_t words, int64_t layers) {
#if defined(GATEDOPS_AMX)
  if (active_isa() == Isa::amx && words < kAmxWords * layers && forced_isa().empty()) {
    return kernels_of<TileKernels>(Isa::avx512);
  }
#endif
  static_cast<void>(words), static_cast<void>(layers);
  return active_kernels<TileKernels>();
}

}  // namespace gatedops::cpu
