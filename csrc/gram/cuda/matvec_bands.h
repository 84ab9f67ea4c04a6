// A Gram times v, a band of rows of tiles at a time whose parts fit the workspace: the kernel that contracts (with
// ContractTile), then the one that adds up (sum_partials), to what the bands before left.
#pragma once

#include <algorithm>

#include "problem.h"

namespace gatedops::cuda {

// Tiles of a band that begins at row `first` and ends before row `end` have (end - first) * band_width parts.
GATEDOPS_HOST_DEVICE constexpr int64_t band_width(const TileSchedule& all, int64_t end) {
  return all.symmetric ? (end < all.cols ? end : all.cols) : all.cols;
}

// The end of the band that begins at row `first`: as many rows as have `parts` parts, or one.
inline int64_t band_end(const TileSchedule& all, int64_t first, int64_t parts) {
  int64_t end = first + 1;
  while (end < all.rows && (end + 1 - first) * band_width(all, end + 1) <= parts) {
    ++end;
  }
  return end;
}

// Parts of the largest band.
inline int64_t largest_band(const TileSchedule& all, int64_t parts) {
  int64_t largest = 0;
  for (int64_t first = 0; first < all.rows;) {
    const int64_t end = band_end(all, first, parts), found = (end - first) * band_width(all, end);
    largest = found > largest ? found : largest;
    first = end;
  }
  return largest;
}

// The band [first_row, end_row) of tiles, with parts as ContractTile wrote them.
struct PartialSums {
  Contraction parts;
  int64_t end_row, tile_cols;  // in tiles
  int64_t rows;                // of out
  bool symmetric;
  void* out;  // (rows, columns)
};

// Tiles of `edge` rows and columns.
inline TileSchedule schedule_of(const GramProblem& p, bool symmetric, int64_t edge) {
  return {(p.x.rows + edge - 1) / edge, (p.y.rows + edge - 1) / edge, symmetric};
}

// Of problem.contraction the caller fills in v and columns; out is (x.rows, columns), contiguous. Partial products take
// at most `bytes`, or what one row of tiles needs.
struct MatvecCall {
  GramProblem problem;
  bool symmetric;
  void* out;
  int64_t bytes;
};

// Bands of a kernel whose schedule is of squares of kSquare x kSquare tiles of kTile rows.
template <class Value, int kTile, int kSquare>
class Bands {
 public:
  explicit Bands(const MatvecCall& call)
      : call_(call), all_(schedule_of(call.problem, call.symmetric, int64_t{kTile} * kSquare)) {}

  int64_t workspace() const {
    return largest_band(all_, parts()) * square_bytes();
  }

  // Calls contract(problem) and then add_up(sums), which launch and return an error or 0, for each band.
  template <class Contract, class AddUp>
  int run(void* workspace, const Contract& contract, const AddUp& add_up) const {
    const int64_t half = call_.symmetric ? this->workspace() / 2 : 0;
    for (int64_t first = 0; first < all_.rows;) {
      const int64_t end = band_end(all_, first, parts());
      GramProblem p = call_.problem;
      p.schedule = all_;
      p.schedule.first_row = first;
      p.schedule.rows = end;
      p.contraction.rows = workspace;
      p.contraction.cols = static_cast<char*>(workspace) + half;
      p.contraction.first_row = first * kSquare;
      p.contraction.stride = band_width(all_, end) * kSquare;
      const int64_t end_row = std::min(end * kSquare, tiles(p.x.rows));
      const PartialSums sums{p.contraction, end_row, tiles(p.y.rows), p.x.rows, call_.symmetric, call_.out};
      int error = contract(p);
      error = error == 0 ? add_up(sums) : error;
      if (error != 0) {
        return error;
      }
      first = end;
    }
    return 0;
  }

 private:
  static int64_t tiles(int64_t rows) {
    return (rows + kTile - 1) / kTile;
  }
  // Of partial products: those of its rows, and where symmetric as many again of its columns.
  int64_t square_bytes() const {
    const int64_t part = int64_t{kTile} * call_.problem.contraction.columns * static_cast<int64_t>(sizeof(Value));
    return part * kSquare * kSquare * (call_.symmetric ? 2 : 1);
  }
  int64_t parts() const {
    return call_.bytes / square_bytes();
  }

  const MatvecCall& call_;
  TileSchedule all_;
};

}  // namespace gatedops::cuda
