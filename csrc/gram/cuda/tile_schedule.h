// The order in which the tiles of a Gram are done: all of an n x m grid, or those on and below the
// diagonal of a symmetric one, each once.
#pragma once

#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

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

}  // namespace gatedops::cuda
