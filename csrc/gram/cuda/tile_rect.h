// Where a tile lies in the matrix of all pairs.
#pragma once

#include "core/cuda/instructions.h"
#include "problem.h"

namespace gatedops::cuda {

struct TileRect {
  int64_t i, j;    // first row and column
  int rows, cols;  // inside the problem; none of a tile that nobody wants
  bool diagonal;   // of a symmetric problem: only the pairs on and below its diagonal count
};

// Tiles above the diagonal of a symmetric problem are not wanted.
template <int kTile>
__device__ __forceinline__ TileRect tile_rect(const GramProblem& p, TileIndex at) {
  const int64_t edge = kTile, i = at.row * edge, j = at.col * edge;
  const bool wanted = i < p.x.rows && j < p.y.rows && !(p.schedule.symmetric && at.col > at.row);
  return {
      i, j, wanted ? static_cast<int>(min(edge, p.x.rows - i)) : 0,
      wanted ? static_cast<int>(min(edge, p.y.rows - j)) : 0, p.schedule.symmetric && at.row == at.col};
}

}  // namespace gatedops::cuda
