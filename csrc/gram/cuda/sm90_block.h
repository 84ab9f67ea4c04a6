// This header defines a block of the wgmma kernel: its tile, its memory and its barriers. Producer and consumers share
// a ring of stages. Consumers and finishers share the memory of the finished tile. The producer hands a ring of units
// of work to both. A stage, the finished tile and a unit are each full or empty, and their readers and writers wait for
// that.
#pragma once

#include <cstdint>
#include <type_traits>

#include "contract_tile.h"
#include "core/cuda/instructions.h"
#include "layout.h"

namespace gatedops::cuda {

// This many threads start a wgmma together.
constexpr int kWarpgroup = 128;

// The constants of a tile for a product of type Product: float, or int32_t if the counts themselves are wanted. float64
// takes the mma.sync kernel, because 64 counts and 128 registers of product do not fit here. kBlocks blocks, 2 or 1,
// form a cluster.
template <class Product, int kBlocks>
struct Sm90Traits {
  using Value = Product;
  static constexpr bool kHasProduct = !std::is_same_v<Product, int32_t>;
  static_assert(sizeof(Product) == 4, "counts and product of m64n128 are 64 + 64 registers of 32 bits");

  // Two consumer warpgroups have one m64n128 each, which makes a square tile. While one multiplies counts into its
  // product, the other keeps the tensor cores busy. One thread of the producer warpgroup starts the copies. The
  // finisher warpgroup writes or contracts a finished tile while the next one is counted.
  static constexpr int kTile = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerRows = kTile / kConsumers;
  // These sizes are not free to choose, because a product is one wgmma.m64n128 of a warpgroup. With twice the columns
  // each thread would need 128 registers for counts and 128 for the product, and it has at most 255. The layouts of the
  // accumulators, the copies and the finished tile also assume 128.
  static_assert(kTile == 128 && kConsumerRows == 64, "core/cuda/instructions.h multiplies 64 rows by 128 columns");
  static constexpr int kValues = kConsumerRows * kTile / kWarpgroup;
  static constexpr int kConsumerThreads = kWarpgroup * kConsumers;
  static constexpr int kFinisherThreads = kWarpgroup;
  static constexpr int kProducerThreads = kWarpgroup;
  static constexpr int kThreads = kConsumerThreads + kProducerThreads + kFinisherThreads;

  // The two blocks of a cluster, on two multiprocessors, compute tiles one below the other. Each copies half of the
  // rows of gates of their common columns to both. So a block reads 24 instead of 32 KiB a stage from the second-level
  // cache, whose bandwidth is below what the tensor cores can take. A single block copies all of its rows itself and
  // uses no instruction of clusters.
  static constexpr int kCluster = kBlocks;
  static_assert(kCluster == 1 || kCluster == 2);
  static constexpr int kSharedRows = kTile / kCluster;

  // At launch each thread has 128 registers; setmaxnreg gives more to the threads that hold counts and product. Without
  // a product consumers need fewer, and the producer gets more, because it then numbers layers as well as tiles.
  static constexpr int kLaunchRegisters = 128;
  static constexpr int kConsumerRegisters = kHasProduct ? 200 : 192;
  static constexpr int kProducerRegisters = kHasProduct ? 32 : 40;
  static constexpr int kFinisherRegisters = 80;
  static_assert(kLaunchRegisters * kThreads <= 65536);
  static_assert(
      kConsumerThreads * kConsumerRegisters + kProducerThreads * kProducerRegisters +
          kFinisherThreads * kFinisherRegisters <=
      kLaunchRegisters * kThreads);
  static_assert(kProducerRegisters % 8 == 0 && kConsumerRegisters % 8 == 0 && kFinisherRegisters % 8 == 0);

  // A stage has 1024 gates of both operands in rows of 128 bytes. Each operand is one TMA box with the widest swizzle.
  static constexpr int kStages = 4;
  static constexpr int kOperandBytes = kTile * kRowBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static_assert(kSharedRows * kRowBytes % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");

  // The finished tile has memory of its own, so that the copies of the next tile go on while it is written.
  static constexpr int kStagedBytes = kTile * kTile * static_cast<int>(sizeof(Product));
  static constexpr int kStagedOffset = kStages * kStageBytes;
  static constexpr int kScratchOffset = (kStagedOffset + kStagedBytes + 15) / 16 * 16;
  static constexpr int kScratchBytes =
      kHasProduct ? ContractTile::scratch(kTile) * static_cast<int>(sizeof(Product)) : 0;
  // The producer is at most kStages + 2 units ahead of the finisher: one unit for each stage, the one that the
  // consumers are at, and the finished one. kUnits is at least as many, so the ring never holds the producer up.
  static constexpr int kUnits = 8;
  static_assert(kUnits >= kStages + 2);
  static constexpr int kUnitOffset = (kScratchOffset + kScratchBytes + 15) / 16 * 16;
  static constexpr int kUnitBytes = 16;
  // Each warp of the consumers and of the finisher arrives once when it has read a unit.
  static constexpr int kUnitReaders = (kConsumerThreads + kFinisherThreads) / 32;

  // Each stage, the finished tile and each unit have a barrier for full and one for empty.
  static constexpr int kBarrierOffset = kUnitOffset + kUnits * kUnitBytes;
  static constexpr int kUnitBarrierOffset = kBarrierOffset + (2 * kStages + 2) * 8;
  static constexpr int kSharedBytes = kUnitBarrierOffset + 2 * kUnits * 8;
  static_assert(kSharedBytes <= 227 << 10, "shared memory of an H100 or H200 block");

  // Matrix descriptors count units of 16 bytes. The next group of rows is eight rows of 128 bytes further on. The
  // leading offset has no meaning for a swizzled operand of one span, and is 1 by convention. Mode 1 in bits 62-63 is
  // the 128-byte swizzle.
  static constexpr uint64_t kDescriptor = uint64_t{1} << 62 | uint64_t{8 * kRowBytes / 16} << 32 | uint64_t{1} << 16;
};

// Returns the descriptor of an operand at `address`, a multiple of 1024.
GATEDOPS_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint64_t descriptor, uint32_t address) {
  return descriptor | (address & 0x3FFFF) >> 4;
}

// The next step of 256 gates is 32 bytes further on. The swizzle works on the bits of the address, so that inside a row
// adding to the descriptor is correct.
constexpr uint64_t kDescriptorStep = kStepWords * 4 / 16;

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

// A unit of work: the layers [begin, end) of a tile. A negative end says that there is no more work.
struct alignas(16) Unit {
  // The place of the tile counts tiles.
  int32_t row, col;
  int32_t begin, end;

  __device__ __forceinline__ bool exists() const {
    return end >= 0;
  }
};

// The ring of units as one side of it sees it. Only the producer computes which tile comes next, while the tensor cores
// are busy. The others read it.
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
    wait_for_phase(empty(), parity ^ 1);  // This does not wait in the first round.
    unit() = next;
    arrive(full());
    advance();
  }

  // All lanes of a warp call this. The compiler then knows that they have the same unit.
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

// Initialises all barriers. A stage is empty when the consumers of all blocks of the cluster have left it, because the
// copies of one block go to all.
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
