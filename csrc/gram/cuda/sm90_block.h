// A block of the wgmma kernel: its tile, its memory, and what its roles wait for. These are a ring of stages between
// producer and consumers, each full or empty; the finished tile between consumers and finishers, full or empty; and a
// ring of units of work, which the producer hands to both, each full or empty.
#pragma once

#include <cstdint>
#include <type_traits>

#include "contract_tile.h"
#include "core/cuda/instructions.h"
#include "layout.h"

namespace gatedops::cuda {

// Threads that start a wgmma together.
constexpr int kWarpgroup = 128;

// Tile constants, for a product of type Product: float, or int32_t where the counts themselves are wanted. (float64
// takes the mma.sync kernel: 64 counts and 128 registers of product do not fit.) kBlocks: how many blocks form a
// cluster, 2 or 1.
template <class Product, int kBlocks>
struct Sm90Traits {
  using Value = Product;
  static constexpr bool kHasProduct = !std::is_same_v<Product, int32_t>;
  static_assert(sizeof(Product) == 4, "counts and product of m64n128 are 64 + 64 registers of 32 bits");

  // Two consumer warpgroups, one m64n128 each: a square tile, and while one multiplies counts into its product the
  // other keeps the tensor cores busy. One thread of the producer warpgroup starts the copies. The finisher warpgroup
  // takes finished tiles to where they go while the next one is counted.
  static constexpr int kTile = 128;
  static constexpr int kConsumers = 2;
  static constexpr int kConsumerRows = kTile / kConsumers;
  // Not free to choose: a product is one wgmma.m64n128 of a warpgroup. Twice the columns would be 128 counts and 128
  // numbers of the product in each thread, which has 255 registers at most; the layouts of the accumulators, the copies
  // and the finished tile are those of 128.
  static_assert(kTile == 128 && kConsumerRows == 64, "core/cuda/instructions.h multiplies 64 rows by 128 columns");
  static constexpr int kValues = kConsumerRows * kTile / kWarpgroup;
  static constexpr int kConsumerThreads = kWarpgroup * kConsumers;
  static constexpr int kFinisherThreads = kWarpgroup;
  static constexpr int kProducerThreads = kWarpgroup;
  static constexpr int kThreads = kConsumerThreads + kProducerThreads + kFinisherThreads;

  // Two blocks, on two multiprocessors, do tiles one below the other: each gets the rows of gates of their common
  // columns once, half of them from its own copies and half from the other's. That is 24 instead of 32 KiB a stage
  // out of the second-level cache, whose bandwidth is below what the tensor cores can take. A single block copies all
  // of its rows itself and uses no instruction of clusters.
  static constexpr int kCluster = kBlocks;
  static_assert(kCluster == 1 || kCluster == 2);
  static constexpr int kSharedRows = kTile / kCluster;

  // At launch 128 registers a thread; setmaxnreg moves them to where counts and product are. Counts alone leave some to
  // the producer, which then numbers layers as well as tiles.
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

  // 1024 gates of both operands a stage, in rows of 128 bytes: one TMA box each, with its widest swizzle.
  static constexpr int kStages = 4;
  static constexpr int kOperandBytes = kTile * kRowBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;
  static_assert(kSharedRows * kRowBytes % 1024 == 0, "the 128-byte swizzle repeats every 1024 bytes");

  // The finished tile has memory of its own, so that the next tile's copies go on while it is written.
  static constexpr int kStagedBytes = kTile * kTile * static_cast<int>(sizeof(Product));
  static constexpr int kStagedOffset = kStages * kStageBytes;
  static constexpr int kScratchOffset = (kStagedOffset + kStagedBytes + 15) / 16 * 16;
  static constexpr int kScratchBytes =
      kHasProduct ? ContractTile::scratch(kTile) * static_cast<int>(sizeof(Product)) : 0;
  // Units of work that the producer has begun and the finisher has not: at most a stage each, the one that the
  // consumers are at, and the finished one. A power of two beyond that never holds the producer up.
  static constexpr int kUnits = 8;
  static_assert(kUnits >= kStages + 2);
  static constexpr int kUnitOffset = (kScratchOffset + kScratchBytes + 15) / 16 * 16;
  static constexpr int kUnitBytes = 16;
  // Each warp of the consumers and of the finisher says once that it has read a unit.
  static constexpr int kUnitReaders = (kConsumerThreads + kFinisherThreads) / 32;

  // Full and empty of each stage, of the finished tile, and of each unit.
  static constexpr int kBarrierOffset = kUnitOffset + kUnits * kUnitBytes;
  static constexpr int kUnitBarrierOffset = kBarrierOffset + (2 * kStages + 2) * 8;
  static constexpr int kSharedBytes = kUnitBarrierOffset + 2 * kUnits * 8;
  static_assert(kSharedBytes <= 227 << 10, "shared memory of an H100 or H200 block");

  // Matrix descriptors count in 16 bytes: eight rows of 128 bytes to the next group of rows; the leading offset has
  // no meaning for a swizzled operand of one span (16 by convention); mode 1 in bits 62-63 is the 128-byte swizzle.
  static constexpr uint64_t kDescriptor = uint64_t{1} << 62 | uint64_t{8 * kRowBytes / 16} << 32 | uint64_t{1} << 16;
};

// The descriptor of an operand at `address`, a multiple of 1024.
GATEDOPS_HOST_DEVICE constexpr uint64_t matrix_descriptor(uint64_t descriptor, uint32_t address) {
  return descriptor | (address & 0x3FFFF) >> 4;
}

// A step of 256 gates on is 32 bytes on. The swizzle works on address bits, so inside a row plain addition is right.
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
