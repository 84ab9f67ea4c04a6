// The problem that a Gram kernel gets by value as its parameter. The host does not dereference the pointers in it.
#pragma once

#include <cstdint>

#include "layout.h"

namespace gatedops::cuda {

// 128 layers are 3 KiB of a kernel's 4 KiB of parameters. As parameters they need no copy to the device, which would
// have to live until the kernel ends.
constexpr int kMaxLayers = 128;

// A layer of 2^18 words or more may have a count that does not fit the 23 bits of a float's mantissa.
constexpr int32_t kWideWords = 1 << 18;

struct Layer {
  int32_t x_first, y_first, words;
  // Counts of gates that agree need the width of the layer.
  int32_t gates;
  double scale;
};

// The numbers from which a kernel makes Sigma: none, bytes, or float32 numbers (only the wgmma kernel).
enum class SigmaOf : int32_t { kNothing, kBytes, kFloats };

// layer[count] stands for Sigma, which is multiplied last. Its words are those of sigma_x and sigma_y.
struct LayerTable {
  int32_t count;
  SigmaOf sigma;
  Layer layer[kMaxLayers + 1];

  // Returns the end of the layers that the integer units of the tensor cores multiply.
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

// Sums of products of bytes are exact modulo 2^32. With up to this many columns they stay below 2^32.
constexpr int64_t kMaxSigmaColumns = 0xFFFFFFFFll / (255 * 255);

struct GateRows {
  // Words are aligned to 16 bytes.
  const uint32_t* words;
  int64_t rows, stride;  // The stride counts words and is a multiple of 4, or any number for a single row.
};

// Returns how many words lie between the beginnings of two rows. For a single row it is the `words` words of the row,
// in whole units of 16 bytes.
GATEDOPS_HOST_DEVICE constexpr int64_t row_stride(const GateRows& gates, int32_t words) {
  return gates.rows > 1 ? gates.stride : (words + 3) / 4 * 4;
}

// Says where values go: out_ij = [out_ij *] value_ij [* (factor_i * y_factor_j)]. The factors are multiplied in
// float64. Counts of layer l go to plane l. x_on (L, n) and y_on (L, m) have how many gates are on in each row; with
// them counts become those of gates that agree or differ.
struct GramOutput {
  void* data;
  // Strides count elements.
  int64_t row_stride, plane_stride;
  bool times, differ;
  const double *factor, *y_factor;
  const int32_t *x_on, *y_on;
};

// Says where products with v go instead of the values. For tile (i, j) of the schedule's rows, K_ij v_j goes to part
// (i - first_row) * stride + j of `rows`. If the problem is symmetric and the tile is off the diagonal, K_ij^T v_i goes
// to the same part of `cols`. A part is (columns, tile edge). Elements have the type of the product.
struct Contraction {
  // v is (y.rows, columns).
  const void* v;
  void *rows, *cols;
  // These count tiles.
  int64_t first_row, stride;
  int32_t columns;
};

// Says where the k largest values of each row and their columns go, (x.rows, k), largest first. Among equal values the
// first is taken. Values have the type of the product. If not_itself, x and y are the same rows, and no row is its own
// neighbour.
struct Neighbors {
  void* values;
  int64_t* indices;
  // k is 1 to kMaxNeighbors.
  int32_t k;
  bool not_itself;
};
constexpr int kMaxNeighbors = 32;

// The order in which the tiles of a Gram are computed, each once: all tiles of an n x m grid or, if it is symmetric,
// those on and below the diagonal.

struct TileIndex {
  int64_t row, col;
};

// Returns how many tiles on and below the diagonal the first `rows` rows of tiles have.
GATEDOPS_HOST_DEVICE constexpr int64_t triangle(int64_t rows) {
  return rows * (rows + 1) / 2;
}

// Tiles go column by column through groups of kGroup rows. The tiles that all multiprocessors work on at one time then
// form a rectangle and share their rows of gates in the L2 cache. All rows of MNIST with 10 layers of 1024 gates are
// 77 MB, more than that cache holds.
struct TileSchedule {
  static constexpr int64_t kGroup = 8;

  // These count tiles. The tiles of rows [first_row, rows) are computed.
  int64_t rows, cols;
  // A symmetric schedule needs rows <= cols.
  bool symmetric;
  int64_t first_row = 0;

  GATEDOPS_HOST_DEVICE constexpr int64_t tiles() const {
    return before(rows) - before(first_row);
  }

  // Returns tile t, 0 <= t < tiles().
  GATEDOPS_HOST_DEVICE constexpr TileIndex tile(int64_t t) const {
    t += before(first_row);
    const int64_t row = symmetric ? triangle_row(t) : t / cols;
    const int64_t first = first_row + (row - first_row) / kGroup * kGroup;
    const int64_t height = rows - first < kGroup ? rows - first : kGroup;
    const int64_t full = symmetric ? first : cols;  // In these columns every row of the group has a tile.
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
  // Returns how many tiles the rows before `row` have.
  GATEDOPS_HOST_DEVICE constexpr int64_t before(int64_t row) const {
    return symmetric ? triangle(row) : row * cols;
  }

  // Returns the largest r with triangle(r) <= t. It is found bit by bit, without floating point, so that it is exact
  // for any t.
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
  // Sigma has rows of bytes or floats, padded with zeros to a multiple of 16 bytes.
  GateRows sigma_x, sigma_y;
  // For floats these are the differences of x and y to sigma_x and sigma_y.
  GateRows sigma_x_rest, sigma_y_rest;
  TileSchedule schedule;
  GramOutput out;
  Contraction contraction;
  Neighbors neighbors;
  LayerTable layers;
};

static_assert(sizeof(GramProblem) <= 4000, "kernel parameters end at 4 KiB, and sm_90 adds its own");

}  // namespace gatedops::cuda
