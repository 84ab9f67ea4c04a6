// What a Gram kernel is told, by value. No pointer here is dereferenced on the host.
#pragma once

#include <cstdint>

#include "layout.h"

namespace gatedops::cuda {

// 128 layers are 3 KiB of a kernel's 4 KiB of parameters; no copy to the device, nothing to keep alive.
constexpr int kMaxLayers = 128;

// From 2^18 words on a count may not fit the 23 bits that counting in a float's mantissa allows.
constexpr int32_t kWideWords = 1 << 18;

struct Layer {
  int32_t x_first, y_first, words;
  int32_t gates;  // width, for counts that agree
  double scale;
};

// What Sigma is made of inside a kernel: nothing, bytes, or (wgmma alone) float32 numbers.
enum class SigmaOf : int32_t { kNothing, kBytes, kFloats };

// layer[count] stands for Sigma: the last to be multiplied, its words those of sigma_x and sigma_y.
struct LayerTable {
  int32_t count;
  SigmaOf sigma;
  Layer layer[kMaxLayers + 1];

  // Of what the integer units of the tensor cores multiply.
  GATEDOPS_HOST_DEVICE int end() const {
    return count + (sigma == SigmaOf::kBytes);
  }
  GATEDOPS_HOST_DEVICE bool is_sigma(int index) const {
    return index == count;
  }
};

// The wgmma kernel has a TMA map for each layer, and TMA counts rows in int32.
constexpr int kMaxMappedLayers = 64;
constexpr int64_t kMaxMappedRows = INT32_MAX - 2 * 128;

// Sums of products of bytes are exact modulo 2^32: below it with up to this many columns.
constexpr int64_t kMaxSigmaColumns = 0xFFFFFFFFll / (255 * 255);

struct GateRows {
  const uint32_t* words;  // 16-byte aligned
  int64_t rows, stride;   // stride in words, a multiple of 4; any for a single row
};

// How many words a row begins behind the one before. A single row gets what its `words` words take, in whole 16 bytes.
GATEDOPS_HOST_DEVICE constexpr int64_t row_stride(const GateRows& gates, int32_t words) {
  return gates.rows > 1 ? gates.stride : (words + 3) / 4 * 4;
}

// Where values go: out_ij = [out_ij *] value_ij [* (factor_i * y_factor_j)], the latter in float64. Counts of layer l
// go to plane l; with x_on (L, n) and y_on (L, m), gates on, they become counts of gates that agree or differ.
struct GramOutput {
  void* data;
  int64_t row_stride, plane_stride;  // elements
  bool times, differ;
  const double *factor, *y_factor;
  const int32_t *x_on, *y_on;
};

// Where products with v go instead of the values: for tile (i, j) of the schedule's rows, K_ij v_j to part
// (i - first_row) * stride + j of `rows`, and K_ij^T v_i of a symmetric problem's tiles off the diagonal to the same
// part of `cols`. A part is (columns, tile edge). Elements are of the product's type.
struct Contraction {
  const void* v;  // (y.rows, columns)
  void *rows, *cols;
  int64_t first_row, stride;  // in tiles
  int32_t columns;
};

// Where the k largest values of each row go, (x.rows, k), largest first, of equal ones the first: values of the
// product's type, and their columns. not_itself: x and y are the same rows, and none is among its own.
struct Neighbors {
  void* values;
  int64_t* indices;
  int32_t k;  // 1 to kMaxNeighbors
  bool not_itself;
};
constexpr int kMaxNeighbors = 32;

// The order in which the tiles of a Gram are done: all of an n x m grid, or those on and below the diagonal of a
// symmetric one, each once.

struct TileIndex {
  int64_t row, col;
};

// Tiles on and below the diagonal of the first `rows` rows of tiles.
GATEDOPS_HOST_DEVICE constexpr int64_t triangle(int64_t rows) {
  return rows * (rows + 1) / 2;
}

// Tiles go column by column through groups of kGroup rows: the tiles that all multiprocessors work on at one
// time form a rectangle and share their rows of gates in the L2 cache, which 77 MB (MNIST, 10 x 1024) exceed.
struct TileSchedule {
  static constexpr int64_t kGroup = 8;

  int64_t rows, cols;  // of tiles; the tiles of rows [first_row, rows) are done
  bool symmetric;      // rows <= cols
  int64_t first_row = 0;

  GATEDOPS_HOST_DEVICE constexpr int64_t tiles() const {
    return before(rows) - before(first_row);
  }

  // Tile t, 0 <= t < tiles().
  GATEDOPS_HOST_DEVICE constexpr TileIndex tile(int64_t t) const {
    t += before(first_row);
    const int64_t row = symmetric ? triangle_row(t) : t / cols;
    const int64_t first = first_row + (row - first_row) / kGroup * kGroup;
    const int64_t height = rows - first < kGroup ? rows - first : kGroup;
    const int64_t full = symmetric ? first : cols;  // columns with a tile in every row of the group
    int64_t rest = t - before(first);
    if (rest < full * height) {
      return {first + rest % height, rest / height};
    }
    rest -= full * height;
    int64_t corner_row = 0;
    while (rest > corner_row) {
      rest -= ++corner_row;
    }
    return {first + corner_row, first + rest};
  }

 private:
  // Tiles of the rows before `row`.
  GATEDOPS_HOST_DEVICE constexpr int64_t before(int64_t row) const {
    return symmetric ? triangle(row) : row * cols;
  }

  // The largest r with triangle(r) <= t, bit by bit: exact for any t, no floating point.
  GATEDOPS_HOST_DEVICE constexpr int64_t triangle_row(int64_t t) const {
    int64_t bit = 1;
    while (bit < rows) {
      bit *= 2;
    }
    int64_t row = 0;
    for (; bit > 0; bit /= 2) {
      row += triangle(row + bit) <= t ? bit : 0;
    }
    return row;
  }
};

struct GramProblem {
  GateRows x, y;
  GateRows sigma_x, sigma_y;            // rows of bytes or floats, zeros behind the last up to a multiple of 16 bytes
  GateRows sigma_x_rest, sigma_y_rest;  // of floats: what they are short of x and y
  TileSchedule schedule;
  GramOutput out;
  Contraction contraction;
  Neighbors neighbors;
  LayerTable layers;
};

static_assert(sizeof(GramProblem) <= 4000, "kernel parameters end at 4 KiB, and sm_90 adds its own");

}  // namespace gatedops::cuda
