// A tile of the Gram: up to kTile x kTile pairs, all layers, computed by one thread. This header is
// the interface between the tile grid (problem.h) and the kernels of each instruction set.
#pragma once

#include <cstdint>
#include <string>

#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"

namespace gatedops::cpu {

constexpr int kTile = 256;               // rows and columns of a tile
constexpr int kBlock = 64;               // edge of the blocks a tile is finished in: 16 KiB of float32, in L1
constexpr int kTileStride = kTile + 16;  // elements; a power of two would alias in the L1 cache
// Up to this many columns of v our own loop beats torch's product.
constexpr int kFewColumns = 24;
constexpr int kPanelWords = 512;                    // words of each column packed at a time: 512 KiB at most
constexpr int64_t kStreamBytes = int64_t{8} << 20;  // outputs larger than this are written past the caches
constexpr size_t kZeroed = 128;                     // bytes at the front of a workspace
constexpr int kByteWords = 16;                      // rows of bytes are padded to a multiple of that many words
constexpr int kAmxWords = 16;                       // words of a layer, on average, from which on AMX beats VPOPCNTD

// What is counted of one layer at a time. A layer of more words than the kernels' piece_words comes in several
// pieces, whose counts are summed through the tile's count buffer.
struct LayerPiece {
  int layer;
  int64_t first;    // word index in a row of x
  int64_t y_first;  // word index in a row of y
  int words;
  bool opens;   // first piece of its layer
  bool closes;  // last piece of its layer

  // A layer of its own, at the front of both rows.
  static constexpr LayerPiece whole(int words) {
    return {0, 0, 0, words, true, true};
  }
};

struct RowBlock {
  const uint32_t* words;
  int64_t stride;  // words between rows
  int rows;
};

// Pieces that share one packed panel, the panel-th of a problem.
struct PieceRange {
  const LayerPiece* begin;
  const LayerPiece* end;
  int panel;
  int words() const {
    int total = 0;
    for (const LayerPiece* p = begin; p != end; ++p) {
      total += p->words;
    }
    return total;
  }
};

// All tiles are row-major with kTileStride. `lower` skips what lies strictly above the diagonal of a
// diagonal tile (it is mirrored afterwards).
struct TileKernels {
  int strip;   // columns that a panel interleaves; panels are padded with zero columns to a multiple
  int planes;  // words that a panel keeps of one

  int piece_words;   // of a piece, at most
  int panel_words;   // of the pieces that share a panel, at most
  bool by_block;     // product is as fast block by block, each used while it lies in the L1 cache, as for a whole tile
  size_t workspace;  // bytes that count and product are given: aligned to 64, the first kZeroed of them zero at first

  // Transposes the pieces' words of up to kTile rows into a panel: [strip][word][planes of each column in strip].
  void (*pack_panel)(const RowBlock& y, PieceRange pieces, uint32_t* panel);

  // counts = (or += where a piece continues a layer) popcount(x AND y) over one piece.
  void (*count)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange piece, bool lower, int32_t* counts, void* work);

  // product *= count * scale for each layer closed here (= for layer 0); counts holds open layers.
  void (*product_f32)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const float* scale,
      int32_t* counts, float* product, void* work);
  void (*product_f64)(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const double* scale,
      int32_t* counts, double* product, void* work);

  // out (rows, cols) = tile; out (cols, rows) = tile transposed. `stream` writes past the caches.
  void (*store_f32)(const float* tile, int rows, int cols, float* out, int64_t stride, bool stream);
  void (*store_f64)(const double* tile, int rows, int cols, double* out, int64_t stride, bool stream);
  void (*store_transposed_f32)(const float* tile, int rows, int cols, float* out, int64_t stride, bool stream);
  void (*store_transposed_f64)(const double* tile, int rows, int cols, double* out, int64_t stride, bool stream);

  // turned (cols, rows) = block transposed; both have room for kBlock x kBlock.
  void (*transpose)(const float* block, int rows, int cols, float* turned);

  // sums (columns, cols), kTile between rows, += v^T block for v (rows, columns): the same bits on every instruction
  // set.
  void (*contract)(
      const float* block, int rows, int cols, const double* v, int64_t v_stride, int columns, double* sums);

  // Bit j of by_row[i] where block[i][j] is not less than row_limits[i]; of by_column[i], where column_limits are
  // given, where it is not less than column_limits[j]. For a block of kBlock x kBlock at most.
  void (*find_above_f32)(
      const float* block, int rows, int cols, const float* row_limits, const float* column_limits, uint64_t* by_row,
      uint64_t* by_column);
  void (*find_above_f64)(
      const double* block, int rows, int cols, const double* row_limits, const double* column_limits, uint64_t* by_row,
      uint64_t* by_column);

  // out = x (y - 128)^T for rows of unsigned bytes, `words` words of four each, exact; words is a multiple of
  // kByteWords, and there is memory for kTile rows. The panel has kByteWords words more than it needs.
  // Null where the instruction set has no such product.
  void (*dot_bytes)(const RowBlock& x, const RowBlock& y, int words, uint32_t* panel, int32_t* out);

  // Number of gates on in each layer of one row.
  void (*row_counts)(const uint32_t* row, const int64_t* first, const int64_t* count, int layers, int32_t* out);
};

// The innermost loop of an instruction set's tile kernel, with the columns in registers and nothing else to do.
struct RateLoop {
  int64_t bit_pairs;  // that one round counts
  void (*run)(int64_t rounds);
};

// Bit-pairs per second that this many threads count together with an instruction set's inner operations: the best of
// many short repeats in which all threads run at once. A bit-pair is one bit of one input ANDed with one bit of another
// and counted. The tile kernels do the same operations and more, so no kernel is faster. Takes about 0.2 s.
// std::invalid_argument if this machine does not run the set, or if threads is less than 1.
double bit_pairs_per_second(const std::string& isa, int64_t threads);

// The kernels that are fastest on `layers` layers of `words` words in all, unless an instruction set is forced.
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
