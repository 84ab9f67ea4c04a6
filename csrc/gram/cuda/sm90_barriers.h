// What the roles of a wgmma block wait for: a ring of stages between producer and consumers, each full or empty; the
// finished tile between consumers and finishers, full or empty; and a ring of units of work, which the producer hands
// to both, each full or empty.
#pragma once

#include "core/cuda/instructions.h"
#include "sm90_traits.h"

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

// A piece of work: the layers [begin, end) of a tile. A negative end says that the work is done.
struct alignas(16) Unit {
  int32_t row, col;  // of the tile, in tiles
  int32_t begin, end;

  __device__ __forceinline__ bool exists() const {
    return end >= 0;
  }
};

// The ring of units as one side of it sees it. Only the producer computes which tile comes next, while the tensor cores
// are busy: the others read it.
template <class Traits>
struct UnitRing {
  static_assert(sizeof(Unit) == Traits::kUnitBytes);
  uint32_t barriers = shared_address(shared_memory()) + Traits::kUnitBarrierOffset;
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ uint32_t full() const {
    return barriers + slot * 8;
  }
  __device__ __forceinline__ uint32_t empty() const {
    return full() + Traits::kUnits * 8;
  }
  __device__ __forceinline__ Unit& unit() const {
    return reinterpret_cast<Unit*>(shared_memory() + Traits::kUnitOffset)[slot];
  }
  __device__ __forceinline__ void advance() {
    slot = slot + 1 == Traits::kUnits ? 0 : slot + 1;
    parity ^= slot == 0;
  }

  // One thread calls this.
  __device__ __forceinline__ void put(const Unit& next) {
    wait_for_phase(empty(), parity ^ 1);  // passes at once in the first round
    unit() = next;
    arrive(full());
    advance();
  }

  // All lanes of a warp call this, and know afterwards that they have the same unit.
  __device__ __forceinline__ Unit take() {
    wait_for_phase(full(), parity);
    const Unit read = unit();
    const Unit taken{uniform(read.row), uniform(read.col), uniform(read.begin), uniform(read.end)};
    if (threadIdx.x % 32 == 0) {
      arrive(empty());
    }
    wait_in_warp();
    advance();
    return taken;
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
  UnitRing<Traits> units;
  for (int i = 0; i < Traits::kUnits; ++i, units.advance()) {
    init_barrier(units.full(), 1);
    init_barrier(units.empty(), Traits::kUnitReaders);
  }
  publish_barriers();
}

// All threads of all blocks of the cluster wait here for each other.
template <class Traits>
__device__ __forceinline__ void wait_for_blocks() {
  if constexpr (Traits::kCluster > 1) {
    wait_for_cluster();
  } else {
    wait_among(0, Traits::kThreads);
  }
}

}  // namespace gatedops::cuda
