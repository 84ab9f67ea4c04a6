// The Gram kernel for sm_90a. It uses wgmma on single bits (BGMMA); TMA copies the operands with its 128-byte swizzle.
// Clusters of two persistent blocks, or single ones, compute tile after tile. In a block one thread chooses the tiles
// and starts their copies, two warpgroups multiply, and one warpgroup writes or contracts the previous tile.
//
// The products of the tensor cores bound it, if a layer is wide enough. A tile, 128 x 128 pairs, takes for each layer:
//
// | work                         | for 1024 gates             | what bounds it on an H200                            |
// |------------------------------|----------------------------|------------------------------------------------------|
// | wgmma m64n128k256 b1         | 8                          | tensor cores, 12.5e15 operations a second, 4.2e6 each |
// | TMA copies                   | 24 KiB, 32 without cluster | the L2 cache; not measured here                      |
// | close_layer, 3 instructions  | 64 values of 256 threads   | 192 cycles a warpgroup, beside the other's wgmma     |
// | writing float32, once a tile | 64 KiB, 128 if symmetric   | device memory, 4.3e12 bytes a second                 |
//
// benchmarks/_gram/gpu_limits.py has the sources of these rates.
#pragma once

#include "arithmetic.h"
#include "layout.h"
#include "sm90_block.h"
#include "walk.h"
#include "write_tile.h"

namespace gatedops::cuda {

// Each layer has a map for each side, so that words behind the layer's last are zeros, like rows behind the last. Sigma
// has one too, and a second one for the rest of floats. The maps are 17 of the 32 KiB of parameters that a kernel may
// have from CUDA 12.1 on.
struct Sm90Problem {
  // Its schedule has squares of kCluster x kCluster tiles.
  GramProblem gram;
  TensorMap x[kMaxMappedLayers + 2], y[kMaxMappedLayers + 2];
};
static_assert(sizeof(Sm90Problem) <= 32764);

#if defined(GATEDOPS_HAS_WGMMA)

// Calls use(unit) for this block's units. A unit is a tile, or one layer of it if counts are wanted. The blocks of a
// cluster are at the same columns of the same square of tiles. If kByRows, a cluster computes all tiles of its rows one
// after the other.
template <class Traits, bool kByRows, class Use>
__device__ __forceinline__ void each_unit(const GramProblem& p, const Use& use) {
  constexpr int kCluster = Traits::kCluster;
  const int rank = static_cast<int>(blockIdx.x % kCluster);
  const int64_t cluster = blockIdx.x / kCluster, clusters = gridDim.x / kCluster;
  const auto at_place = [&](const TileIndex& at, int begin, int end) {
    if (at.col * Traits::kTile < p.y.rows) {
      use(Unit{static_cast<int32_t>(at.row), static_cast<int32_t>(at.col), begin, end});
    }
  };
  if constexpr (kByRows) {
    for (int64_t row = cluster; row < p.schedule.rows; row += clusters) {
      for (int64_t col = 0; col < p.schedule.cols * kCluster; ++col) {
        at_place({row * kCluster + rank, col}, 0, p.layers.end());
      }
    }
  } else {
    const int planes = Traits::kHasProduct ? 1 : p.layers.count;
    const int64_t units = p.schedule.tiles() * kCluster * planes;
    for (int64_t unit = cluster; unit < units; unit += clusters) {
      const int64_t strip = unit / planes;
      const int plane = static_cast<int>(unit % planes);
      const TileIndex square = p.schedule.tile(strip / kCluster);
      at_place(
          {square.row * kCluster + rank, square.col * kCluster + strip % kCluster}, plane,
          Traits::kHasProduct ? p.layers.end() : plane + 1);
    }
  }
}

// Walks over the floats of Sigma, 32 of each row at a time.
__device__ __forceinline__ PieceCursor float_pieces(const LayerTable& layers) {
  return {layers, layers.count, layers.count + 1};
}

// One thread runs this. It hands on all units and starts their copies. It fills a stage as soon as all consumers of the
// cluster have left it. It copies the rows of x, which are this block's own, and its part of the rows of y, which the
// cluster shares, to all blocks.
template <class Traits, bool kByRows>
__device__ __forceinline__ void produce(const Sm90Problem& p) {
  const int rank = static_cast<int>(blockIdx.x % Traits::kCluster);
  const uint32_t part = Traits::kOperandBytes + rank * Traits::kSharedRows * kRowBytes;
  Ring<Traits> ring;
  UnitRing<Traits> units;
  each_unit<Traits, kByRows>(p.gram, [&](const Unit& unit) {
    units.put(unit);
    const int i = unit.row * Traits::kTile;
    const int j = unit.col * Traits::kTile + rank * Traits::kSharedRows;
    const auto copy_stage = [&](int map, int word) {
      wait_for_phase(ring.empty(), ring.parity ^ 1);  // This does not wait in the first round.
      arrive_expecting(ring.full(), Traits::kStageBytes);
      copy_box(ring.operands(), p.x[map], word, i, ring.full());
      if constexpr (Traits::kCluster > 1) {
        copy_box_to(ring.operands() + part, p.y[map], word, j, ring.full(), (1 << Traits::kCluster) - 1);
      } else {
        copy_box(ring.operands() + part, p.y[map], word, j, ring.full());
      }
      ring.advance();
    };
    for (PieceCursor piece(p.gram.layers, unit.begin, unit.end); !piece.done(); piece.advance()) {
      copy_stage(piece.layer_index(), piece.word());
    }
    if (Traits::kHasProduct && p.gram.layers.sigma == SigmaOf::kFloats) {
      for (PieceCursor piece = float_pieces(p.gram.layers); !piece.done(); piece.advance()) {
        copy_stage(piece.layer_index(), piece.word());
        copy_stage(piece.layer_index() + 1, piece.word());
      }
    }
  });
  units.put({0, 0, 0, -1});
}

// A warpgroup's part of the tile.
template <class Traits>
struct WarpgroupTile {
  static constexpr int kValues = Traits::kValues;

  int group = uniform(threadIdx.x / kWarpgroup), warp = uniform(threadIdx.x / 32 % 4), lane = threadIdx.x % 32;

  // Starts the products of a stage, of single bits or of bytes. For a full stage the loop is unrolled, because in a
  // loop each product waits again for the registers.
  __device__ __forceinline__ void multiply_piece(
      uint32_t operands, int steps, bool bytes, int32_t (&sums)[kValues]) const {
    const uint64_t a = matrix_descriptor(Traits::kDescriptor, operands + group * Traits::kConsumerRows * kRowBytes);
    const uint64_t b = matrix_descriptor(Traits::kDescriptor, operands + Traits::kOperandBytes);
    begin_products();
    if (!bytes && steps == kStageSteps) {
#pragma unroll
      for (int step = 0; step < kStageSteps; ++step) {
        count_overlaps(sums, a + step * kDescriptorStep, b + step * kDescriptorStep);
      }
      commit_products();
    } else if (!bytes) {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        count_overlaps(sums, a + step * kDescriptorStep, b + step * kDescriptorStep);
      }
      commit_products();
    } else {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        multiply_bytes(sums, a + step * kDescriptorStep, b + step * kDescriptorStep);
      }
      commit_products();
    }
  }

  // Sums products of two stages of floats, the rounded numbers and their rests. First come the products of a rest and a
  // rounded number, both ways, which are small; then those of two rounded numbers. Products of two rests are too small
  // to matter.
  __device__ __forceinline__ void multiply_float_piece(uint32_t rounded, uint32_t rest, float (&sums)[kValues]) const {
    const uint32_t mine = group * Traits::kConsumerRows * kRowBytes;
    const uint64_t a = matrix_descriptor(Traits::kDescriptor, rounded + mine);
    const uint64_t b = matrix_descriptor(Traits::kDescriptor, rounded + Traits::kOperandBytes);
    const uint64_t a_rest = matrix_descriptor(Traits::kDescriptor, rest + mine);
    const uint64_t b_rest = matrix_descriptor(Traits::kDescriptor, rest + Traits::kOperandBytes);
    begin_products();
    multiply_floats<false>(sums, a_rest, b);
#pragma unroll
    for (int step = 1; step < kStageSteps; ++step) {
      multiply_floats<true>(sums, a_rest + step * kDescriptorStep, b + step * kDescriptorStep);
    }
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      multiply_floats<true>(sums, a + step * kDescriptorStep, b_rest + step * kDescriptorStep);
    }
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      multiply_floats<true>(sums, a + step * kDescriptorStep, b + step * kDescriptorStep);
    }
    commit_products();
  }

  // Tells all blocks whose copies go to this stage that the warpgroup has left it. One thread tells each block.
  __device__ __forceinline__ void leave(uint32_t empty) const {
    const int rank = static_cast<int>(threadIdx.x % kWarpgroup);
    if (rank < Traits::kCluster) {
      if constexpr (Traits::kCluster > 1) {
        arrive_at(empty, rank);
      } else {
        arrive(empty);
      }
    }
  }

  // Copies the warpgroup's values to their place in the tile.
  template <class Value>
  __device__ __forceinline__ void stage_values(const Value (&values)[kValues], Value* tile) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Place place = wide_accumulator_place(lane, i);
      const int row = group * Traits::kConsumerRows + warp * 16 + place.row;
      tile[tile_offset<Traits::kTile>(row, place.col)] = values[i];
    }
  }

  // Multiplies the values that this thread put there by `values`.
  __device__ __forceinline__ void multiply_staged(const float (&values)[kValues], float* tile) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Place place = wide_accumulator_place(lane, i);
      const int row = group * Traits::kConsumerRows + warp * 16 + place.row;
      float& staged = tile[tile_offset<Traits::kTile>(row, place.col)];
      staged = multiplied(values[i], staged);
    }
  }
};

// Multiplies the products in the tile's memory by a Sigma of floats. The tensor cores truncate what they add, so they
// add no more than 32 columns. These sums are added in float32, with rounding.
template <class Traits>
__device__ __forceinline__ void multiply_float_sigma(
    const GramProblem& p, Ring<Traits>& ring, const WarpgroupTile<Traits>& part, float* tile) {
  float sigma[Traits::kValues] = {};
  for (PieceCursor piece = float_pieces(p.layers); !piece.done(); piece.advance()) {
    float sums[Traits::kValues];
#pragma unroll
    for (int i = 0; i < Traits::kValues; ++i) {
      sums[i] = 0.0f;
    }
    const Ring<Traits> rounded = ring;
    ring.advance();
    wait_for_phase(rounded.full(), rounded.parity);
    wait_for_phase(ring.full(), ring.parity);
    part.multiply_float_piece(rounded.operands(), ring.operands(), sums);
    wait_for_products<0>(sums);
    part.leave(rounded.empty());
    part.leave(ring.empty());
    ring.advance();
#pragma unroll
    for (int i = 0; i < Traits::kValues; ++i) {
      sigma[i] = __fadd_rn(sigma[i], sums[i]);
    }
  }
  part.multiply_staged(sigma, tile);
}

// Multiplies the pieces of layers [begin, end). The result is the counts of one layer, or the product over the layers.
template <class Traits>
__device__ __forceinline__ void multiply_layers(
    const GramProblem& p, int begin, int end, Ring<Traits>& ring, const WarpgroupTile<Traits>& part,
    int32_t (&counts)[Traits::kValues], typename Traits::Value (&product)[Traits::kHasProduct ? Traits::kValues : 1]) {
  for (PieceCursor piece(p.layers, begin, end); !piece.done(); piece.advance(), ring.advance()) {
    const bool bytes = Traits::kHasProduct && p.layers.is_sigma(piece.layer_index());
    wait_for_phase(ring.full(), ring.parity);
    part.multiply_piece(ring.operands(), steps_of(piece.words()), bytes, counts);
    wait_for_products<0>(counts);
    part.leave(ring.empty());
    if constexpr (Traits::kHasProduct) {
      if (piece.closes_layer()) {
        bytes ? close_sigma(counts, product) : close_layer(piece.layer(), counts, product);
      }
    }
  }
}

// Computes the counts, or the product over layers [begin, end), of one tile, and writes them to the tile's memory as
// soon as that is empty.
template <class Traits>
__device__ __forceinline__ void compute_tile(
    const GramProblem& p, int begin, int end, Ring<Traits>& ring, const FinishedTile<Traits>& tile) {
  using Value = typename Traits::Value;
  constexpr int kValues = Traits::kValues;
  const WarpgroupTile<Traits> part;
  int32_t counts[kValues];
  Value product[Traits::kHasProduct ? kValues : 1];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    counts[i] = kCountSeed<Value>;
    if constexpr (Traits::kHasProduct) {
      product[i] = Value(1);
    }
  }
  multiply_layers<Traits>(p, begin, end, ring, part, counts, product);
  auto* values = reinterpret_cast<Value*>(shared_memory() + Traits::kStagedOffset);
  wait_for_phase(tile.empty, tile.parity ^ 1);  // This does not wait for the first tile.
  if constexpr (Traits::kHasProduct) {
    part.stage_values(product, values);
    if (p.layers.sigma == SigmaOf::kFloats) {
      multiply_float_sigma<Traits>(p, ring, part, values);
    }
  } else {
    part.stage_values(counts, values);
  }
  arrive(tile.full);
}

template <class Traits>
__device__ __forceinline__ void consume(const GramProblem& p) {
  Ring<Traits> ring;
  UnitRing<Traits> units;
  FinishedTile<Traits> tile;
  for (Unit unit = units.take(); unit.exists(); unit = units.take()) {
    compute_tile<Traits>(p, unit.begin, unit.end, ring, tile);
    tile.advance();
  }
}

template <class Traits, class Finish>
__device__ __forceinline__ void finish(const GramProblem& p) {
  using Value = typename Traits::Value;
  auto* values = reinterpret_cast<Value*>(shared_memory() + Traits::kStagedOffset);
  auto* scratch = reinterpret_cast<Value*>(shared_memory() + Traits::kScratchOffset);
  const auto wait = [] { wait_among(1, Traits::kFinisherThreads); };
  UnitRing<Traits> units;
  FinishedTile<Traits> tile;
  for (Unit unit = units.take(); unit.exists(); unit = units.take()) {
    const TileRect rect = tile_rect<Traits::kTile>(p, {unit.row, unit.col});
    wait_for_phase(tile.full, tile.parity);
    Finish::template run<Traits::kFinisherThreads, Traits::kTile>(
        p, rect, Traits::kHasProduct ? 0 : unit.begin, values, scratch, static_cast<int>(threadIdx.x % kWarpgroup),
        wait);
    arrive(tile.empty);
    tile.advance();
  }
}

#endif

// The kernel is launched in clusters of kCluster blocks. Finish is WriteTile, ContractTile or SelectNeighbors.
template <class Traits, class Finish>
__global__ void __launch_bounds__(Traits::kThreads, 1) gram_sm90(const __grid_constant__ Sm90Problem p) {
#if defined(GATEDOPS_HAS_WGMMA)
  if (threadIdx.x == 0) {
    init_barriers<Traits>();
  }
  wait_for_blocks<Traits>();
  if (threadIdx.x < Traits::kConsumerThreads) {
    take_registers<Traits::kConsumerRegisters>();
    consume<Traits>(p.gram);
  } else if (threadIdx.x < Traits::kConsumerThreads + Traits::kProducerThreads) {
    give_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == Traits::kConsumerThreads) {
      produce<Traits, Finish::kByRows>(p);
    }
  } else {
    give_registers<Traits::kFinisherRegisters>();
    finish<Traits, Finish>(p.gram);
  }
  if constexpr (Traits::kCluster > 1) {
    wait_for_cluster();  // A block must not end while the other copies to its memory or arrives at its barriers.
  }
#endif
}

}  // namespace gatedops::cuda
