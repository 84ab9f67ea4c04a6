// What the roles of a wgmma block wait for: a ring of stages between producer and consumers, each full or empty, and
// the finished tile between consumers and finishers, full or empty.
#pragma once

#include "gram_sm90_traits.h"
#include "instructions.h"

namespace gatedops::cuda {

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

// The finished tile as one side of it sees it.
template <class Traits>
struct FinishedTile {
  uint32_t full = shared_address(shared_memory()) + Traits::kBarrierOffset + 2 * Traits::kStages * 8;
  uint32_t empty = full + 8;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    parity ^= 1;
  }
};

// A stage is empty when the consumers of all blocks of the cluster have left it: the copies of one go to all.
template <class Traits>
__device__ __forceinline__ void init_barriers() {
  Ring<Traits> ring;
  for (int i = 0; i < Traits::kStages; ++i, ring.advance()) {
    init_barrier(ring.full(), 1);
    init_barrier(ring.empty(), Traits::kConsumers * Traits::kCluster);
  }
  const FinishedTile<Traits> tile;
  init_barrier(tile.full, Traits::kConsumerThreads);
  init_barrier(tile.empty, Traits::kFinisherThreads);
  publish_barriers();
}

}  // namespace gatedops::cuda
