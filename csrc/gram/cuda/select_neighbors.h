// Keeps the values of a finished tile that belong to the k largest values of their rows so far. A block computes all
// tiles of its rows one after the other, columns ascending. Among equal values it therefore keeps the one that came
// first. The lists lie in the output itself. After the first tiles few values exceed the smallest of a list, and a row
// costs one comparison.
#pragma once

#include <cmath>

#include "core/cuda/instructions.h"
#include "layout.h"
#include "walk.h"

namespace gatedops::cuda {

struct SelectNeighbors {
  static constexpr bool kByRows = true;

  static constexpr int scratch(int) {
    return 0;
  }

  // Threads 0 .. kThreads - 1 call this together. `values` is the staged tile, which is complete on entry.
  template <int kThreads, int kTile, class Value, class Wait>
  static __device__ __forceinline__ void run(
      const GramProblem& p, const TileRect& tile, int, const Value* values, Value*, int thread, const Wait&) {
    constexpr int kLines = kTile / (kThreads / 32);  // A warp has this many lines.
    static_assert(kLines <= 32, "one threshold a lane");
    const int lane = thread % 32, first = thread / 32 * kLines, k = p.neighbors.k;
    const bool none_yet = tile.j == 0;
    const int lines = min(kLines, tile.rows - first);
    Value threshold = kBelowAll<Value>;
    if (!none_yet && lane < lines) {
      threshold = static_cast<const Value*>(p.neighbors.values)[(tile.i + first + lane) * k + k - 1];
    }
    for (int line = 0; line < lines; ++line) {
      const Row row{tile.i + first + line, tile.j, tile.cols, first + line};
      select<kTile>(p.neighbors, row, values, from_lane(threshold, line), none_yet, lane);
    }
    wait_in_warp();  // At the next tile, a lane reads what another wrote here.
  }

 private:
  struct Row {
    int64_t i, first_col;
    // Both belong to the tile.
    int cols, line;
  };

  template <class Value>
  static constexpr Value kBelowAll = static_cast<Value>(-HUGE_VAL);

  // The list of a row, largest first. Lane e has element e.
  template <class Value>
  struct List {
    Value value;
    int64_t index;

    // Inserts a value behind all values that are as large.
    __device__ __forceinline__ void insert(Value added, int64_t at, int lane) {
      const int place = first_lane(vote(value < added));
      const Value above = from_lane_before(value);
      const int64_t index_above = from_lane_before(index);
      value = lane < place ? value : lane == place ? added : above;
      index = lane < place ? index : lane == place ? at : index_above;
    }
  };

  // Inserts into a row's list those of the tile's values that are above the list's smallest.
  template <int kTile, class Value>
  static __device__ __forceinline__ void select(
      const Neighbors& n, const Row& row, const Value* values, Value threshold, bool none_yet, int lane) {
    bool changed = none_yet;
    Value* kept = static_cast<Value*>(n.values) + row.i * n.k;
    int64_t* indices = n.indices + row.i * n.k;
    List<Value> list{kBelowAll<Value>, 0};
    bool loaded = none_yet;
#pragma unroll
    for (int c = 0; c < kTile; c += 32) {
      const int64_t col = row.first_col + c + lane;
      const bool candidate = c + lane < row.cols && !(n.not_itself && col == row.i);
      const Value value = candidate ? values[tile_offset<kTile>(row.line, c + lane)] : kBelowAll<Value>;
      uint32_t above = vote(value > threshold);
      if (above != 0 && !loaded) {
        if (lane < n.k) {
          list = {kept[lane], indices[lane]};
        }
        loaded = true;
      }
      while (above != 0) {
        const int from = first_lane(above);
        list.insert(from_lane(value, from), row.first_col + c + from, lane);
        threshold = from_lane(list.value, n.k - 1);
        // Only lanes behind `from` remain.
        above &= vote(value > threshold) & ~((2u << from) - 1u);
        changed = true;
      }
    }
    if (changed && lane < n.k) {
      kept[lane] = list.value;
      indices[lane] = list.index;
    }
  }
};

}  // namespace gatedops::cuda
