// The way of a kernel through a problem: where its tiles lie, and which pieces of layers it multiplies for each tile.
#pragma once

#include "core/cuda/instructions.h"
#include "problem.h"

namespace gatedops::cuda {

// Says where a tile lies in the matrix of all pairs.
struct TileRect {
  // The tile begins at row i and column j.
  int64_t i, j;
  // These count the rows and columns inside the problem; both are 0 if the tile is not wanted.
  int rows, cols;
  // On the diagonal of a symmetric problem only the pairs on and below it count.
  bool diagonal;
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

// Walks over layers [begin, end) in pieces of at most kStageWords words, one for each pipeline stage.
class PieceCursor {
 public:
  GATEDOPS_HOST_DEVICE PieceCursor(const LayerTable& layers, int begin, int end)
      : layers_(layers), layer_(begin), end_(end), word_(0) {}

  GATEDOPS_HOST_DEVICE bool done() const {
    return layer_ == end_;
  }
  GATEDOPS_HOST_DEVICE const Layer& layer() const {
    return layers_.layer[layer_];
  }
  GATEDOPS_HOST_DEVICE int layer_index() const {
    return layer_;
  }
  GATEDOPS_HOST_DEVICE int word() const {
    return word_;
  }
  GATEDOPS_HOST_DEVICE int words() const {
    const int left = layer().words - word_;
    return left < kStageWords ? left : kStageWords;
  }
  GATEDOPS_HOST_DEVICE bool closes_layer() const {
    return layer().words - word_ <= kStageWords;
  }
  GATEDOPS_HOST_DEVICE void advance() {
    if (closes_layer()) {
      ++layer_;
      word_ = 0;
    } else {
      word_ += kStageWords;
    }
  }

 private:
  const LayerTable& layers_;
  int layer_, end_, word_;
};

}  // namespace gatedops::cuda
