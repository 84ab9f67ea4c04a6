// The Gram kernel for sm_90a: wgmma on single bits (BGMMA), operands through TMA with its 128-byte swizzle. A
// persistent block does tile after tile; one thread starts the copies of all its tiles, two warpgroups multiply, and
// a ring of stages with a full and an empty barrier each lies between them.
#pragma once

#include "fragments.h"
#include "gram_sm90_traits.h"
#include "layer_product.h"
#include "tile_output.h"

namespace gatedops::cuda {

// A map for each layer and side, so that words behind a layer's last are zeros like rows behind the last. 16 KiB of
// the 32 KiB of parameters that a kernel may have from CUDA 12.1 on.
constexpr int kMaxMappedLayers = 64;

struct Sm90Problem {
  GramProblem gram;
  TensorMap x[kMaxMappedLayers], y[kMaxMappedLayers];
};
static_assert(sizeof(Sm90Problem) <= 32764);

#if defined(GATEDOPS_HAS_WGMMA)

// The ring of stages as one side of it sees it.
template <class Traits>
struct Ring {
  uint32_t base = shared_address(shared_memory());
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ uint32_t operands() const {
    return base + stage * Traits::kStageBytes;
  }
  __device__ __forceinline__ uint32_t full() const {
    return base + Traits::kBarrierOffset + stage * 8;
  }
  __device__ __forceinline__ uint32_t empty() const {
    return full() + Traits::kStages * 8;
  }
  __device__ __forceinline__ void advance() {
    stage = stage + 1 == Traits::kStages ? 0 : stage + 1;
    parity ^= stage == 0;
  }
};

template <class Traits>
__device__ __forceinline__ void init_ring() {
  Ring<Traits> ring;
  for (int i = 0; i < Traits::kStages; ++i, ring.advance()) {
    init_barrier(ring.full(), 1);
    init_barrier(ring.empty(), Traits::kConsumers);
  }
  publish_barriers();
}

// Calls use(tile, first layer, end layer) for this block's units: a tile, or one layer of it where counts are wanted.
template <class Traits, class Use>
__device__ __forceinline__ void each_unit(const GramProblem& p, const Use& use) {
  const int planes = Traits::kHasProduct ? 1 : p.layers.count;
  for (int64_t unit = blockIdx.x; unit < p.schedule.tiles() * planes; unit += gridDim.x) {
    const int plane = static_cast<int>(unit % planes);
    use(tile_rect<Traits::kTile>(p, p.schedule.tile(unit / planes)), plane,
        Traits::kHasProduct ? p.layers.count : plane + 1);
  }
}

// One thread: starts all copies, a stage as soon as both consumers have left it.
template <class Traits>
__device__ __forceinline__ void produce(const Sm90Problem& p) {
  Ring<Traits> ring;
  each_unit<Traits>(p.gram, [&](const TileRect& tile, int begin, int end) {
    for (PieceCursor piece(p.gram.layers, begin, end); !piece.done(); piece.advance(), ring.advance()) {
      wait_for_phase(ring.empty(), ring.parity ^ 1);  // passes at once in the first round
      arrive_expecting(ring.full(), Traits::kStageBytes);
      const int layer = piece.layer_index();
      copy_box(ring.operands(), p.x[layer], piece.word(), static_cast<int>(tile.i), ring.full());
      copy_box(
          ring.operands() + Traits::kOperandBytes, p.y[layer], piece.word(), static_cast<int>(tile.j), ring.full());
    }
  });
}

// A warpgroup's part of the tile.
template <class Traits>
struct WarpgroupTile {
  static constexpr int kValues = Traits::kValues;

  int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;

  __device__ __forceinline__ bool speaks() const {
    return threadIdx.x % 128 == 0;
  }

  // Starts the products of a stage.
  __device__ __forceinline__ void count_piece(uint32_t operands, int steps, int32_t (&counts)[kValues]) const {
    const uint64_t a = matrix_descriptor(Traits::kDescriptor, operands + group * Traits::kConsumerRows * kRowBytes);
    const uint64_t b = matrix_descriptor(Traits::kDescriptor, operands + Traits::kOperandBytes);
    begin_products();
#pragma unroll 1  // unrolled, each copy of the loop body would wait for registers anew
    for (int step = 0; step < steps; ++step) {
      count_overlaps(counts, a + step * kDescriptorStep, b + step * kDescriptorStep);
    }
    commit_products();
  }

  // Copies the warpgroup's values to their place in the tile.
  template <class Value>
  __device__ __forceinline__ void stage_values(const Value (&values)[kValues], Value* tile) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const Place place = wide_accumulator_place(lane, i);
      const int row = group * Traits::kConsumerRows + warp * 16 + place.row;
      tile[row * Traits::kStagedStride + place.col] = values[i];
    }
  }
};

// Counts, or the product over layers [begin, end), of one tile, into the tile's memory.
template <class Traits, class Wait>
__device__ __forceinline__ void compute_tile(
    const GramProblem& p, int begin, int end, Ring<Traits>& ring, typename Traits::Value* values, const Wait& wait) {
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
  for (PieceCursor piece(p.layers, begin, end); !piece.done(); piece.advance(), ring.advance()) {
    wait_for_phase(ring.full(), ring.parity);
    part.count_piece(ring.operands(), steps_of(piece.words()), counts);
    wait_for_products<0>(counts);
    if (part.speaks()) {
      arrive(ring.empty());
    }
    if constexpr (Traits::kHasProduct) {
      if (piece.closes_layer()) {
        close_layer(piece.layer(), counts, product);
      }
    }
  }
  wait();  // the tile before this one has been written
  if constexpr (Traits::kHasProduct) {
    part.stage_values(product, values);
  } else {
    part.stage_values(counts, values);
  }
}

template <class Traits, class Out>
__device__ __forceinline__ void consume(const GramProblem& p) {
  auto* values = reinterpret_cast<typename Traits::Value*>(shared_memory() + Traits::kStagedOffset);
  const auto wait = [] { wait_among(1, Traits::kConsumerThreads); };
  Ring<Traits> ring;
  each_unit<Traits>(p, [&](const TileRect& tile, int begin, int end) {
    compute_tile<Traits>(p, begin, end, ring, values, wait);
    write_tile<Traits::kConsumerThreads, Traits::kStagedStride, Out>(
        p, tile, Traits::kHasProduct ? 0 : begin, values, threadIdx.x, wait);
  });
}

#endif

template <class Traits, class Out>
__global__ void __launch_bounds__(Traits::kThreads, 1) gram_sm90(const __grid_constant__ Sm90Problem p) {
#if defined(GATEDOPS_HAS_WGMMA)
  if (threadIdx.x == 0) {
    init_ring<Traits>();
  }
  __syncthreads();
  if (threadIdx.x >= Traits::kConsumerThreads) {
    give_registers<Traits::kProducerRegisters>();
    if (threadIdx.x == Traits::kConsumerThreads) {
      produce<Traits>(p);
    }
  } else {
    take_registers<Traits::kConsumerRegisters>();
    consume<Traits, Out>(p.gram);
  }
#endif
}

}  // namespace gatedops::cuda
