// A Gram times v, one band of rows of tiles after the other. The parts of a band fit the workspace. For each band, one
// kernel contracts (with ContractTile); then another (sum_partials) adds up the parts and adds them to the sums of
// earlier bands.
#pragma once

#include <algorithm>

#include "problem.h"

namespace gatedops::cuda {

// Returns how many columns of tiles a band has that ends before row `end`. From row `first` on, it has
// (end - first) * band_width parts.
GATEDOPS_HOST_DEVICE constexpr int64_t band_width(const TileSchedule& all, int64_t end) {
  return all.symmetric ? (end < all.cols ? end : all.cols) : all.cols;
}

// Returns the end of the band that begins at row `first`. The band has at most `parts` parts, but at least one row.
inline int64_t band_end(const TileSchedule& all, int64_t first, int64_t parts) {
  int64_t end = first + 1;
  while (end < all.rows && (end + 1 - first) * band_width(all, end + 1) <= parts) {
    ++end;
  }
  return end;
}

// Returns how many parts the largest band has.
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
  // These count tiles.
  int64_t end_row, tile_cols;
  // `out` is (rows, columns).
  int64_t rows;
  bool symmetric;
  void* out;
};

// Returns the schedule of tiles of `edge` rows and columns.
inline TileSchedule schedule_of(const GramProblem& p, bool symmetric, int64_t edge) {
  return {(p.x.rows + edge - 1) / edge, (p.y.rows + edge - 1) / edge, symmetric};
}

// A call of a matvec. The caller fills in v and columns of problem.contraction. `out` is (x.rows, columns), contiguous.
// Partial products take at most `bytes` bytes, or as many as one row of tiles needs.
struct MatvecCall {
  GramProblem problem;
  bool symmetric;
  void* out;
  int64_t bytes;
};

// The bands of a kernel whose schedule has squares of kSquare x kSquare tiles. A tile has kTile rows.
template <class Value, int kTile, int kSquare>
class Bands {
 public:
  explicit Bands(const MatvecCall& call)
      : call_(call), all_(schedule_of(call.problem, call.symmetric, int64_t{kTile} * kSquare)) {}

  int64_t workspace() const {
    return largest_band(all_, parts()) * square_bytes();
  }

  // Calls contract(problem) and then add_up(sums) for each band. Both launch a kernel and return an error or 0.
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
  // Returns the bytes of the partial products of a square: those of its rows and, if symmetric, those of its columns.
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
