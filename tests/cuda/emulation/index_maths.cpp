// Makes the index arithmetic of csrc/gram/cuda/ callable by ctypes.
#include "gram/cuda/arithmetic.h"
#include "gram/cuda/layout.h"
#include "gram/cuda/matvec_bands.h"
#include "gram/cuda/problem.h"
#include "gram/cuda/walk.h"

using namespace gatedops::cuda;

static_assert(TileSchedule{20, 20, true}.tiles() == 210 && TileSchedule{20, 7, false}.tiles() == 140);

extern "C" {

int64_t tiles(int64_t rows, int64_t cols, bool symmetric) {
  return TileSchedule{rows, cols, symmetric}.tiles();
}

void tile(int64_t rows, int64_t cols, bool symmetric, int64_t t, int64_t* at) {
  const TileIndex index = TileSchedule{rows, cols, symmetric}.tile(t);
  at[0] = index.row;
  at[1] = index.col;
}

// Writes (first row, end row) of each band of at most `parts` parts, and returns the number of bands. The tiles go to
// `tiles` as (row, col), band by band.
int64_t bands(int64_t rows, int64_t cols, bool symmetric, int64_t parts, int64_t* out, int64_t* tiles) {
  const TileSchedule all{rows, cols, symmetric};
  int64_t count = 0;
  for (int64_t first = 0; first < rows; ++count) {
    const int64_t end = band_end(all, first, parts);
    const TileSchedule band{end, cols, symmetric, first};
    for (int64_t t = 0; t < band.tiles(); ++t, tiles += 2) {
      tiles[0] = band.tile(t).row;
      tiles[1] = band.tile(t).col;
    }
    out[2 * count] = first;
    out[2 * count + 1] = end;
    first = end;
  }
  return count;
}

int64_t largest(int64_t rows, int64_t cols, bool symmetric, int64_t parts) {
  return largest_band(TileSchedule{rows, cols, symmetric}, parts);
}

int64_t offset(int row, int chunk) {
  return operand_offset(row, chunk);
}

uint32_t tf32(uint32_t bits) {
  return tf32_bits(bits);
}

int turn(int lane, int elements) {
  return column_turn(lane, elements);
}

int64_t staged(int tile, int row, int col) {
  return tile == 64 ? tile_offset<64>(row, col) : tile_offset<128>(row, col);
}

// Writes a row and a column, or a chunk for operands. `what` says of which: 0 is the address that a lane gives for A, 1
// for B, 2 is register i of an accumulator, 3 that of wgmma's.
void place(int what, int lane, int i, int64_t* at) {
  const Place places[] = {
      {a_row(lane), a_chunk(lane)},
      {b_row(lane), b_chunk(lane)},
      accumulator_place(lane, i % 4),
      wide_accumulator_place(lane, i)};
  at[0] = places[what].row;
  at[1] = places[what].col;
}

// Writes (layer, word, words, closes) of each piece of layers of `words` words, and returns the number of pieces.
int64_t pieces(const int32_t* words, int layers, int64_t* out) {
  LayerTable table{};
  table.count = layers;
  for (int l = 0; l < layers; ++l) {
    table.layer[l].words = words[l];
  }
  int64_t count = 0;
  for (PieceCursor piece(table, 0, layers); !piece.done(); piece.advance(), ++count) {
    const int64_t row[] = {piece.layer_index(), piece.word(), piece.words(), piece.closes_layer()};
    for (int i = 0; i < 4; ++i) {
      out[count * 4 + i] = row[i];
    }
  }
  return count;
}
}
