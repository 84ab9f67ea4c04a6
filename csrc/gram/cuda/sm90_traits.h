// Tile constants of the wgmma kernel, for a product of type Product: float, or int32_t where the counts
// themselves are wanted. (float64 takes the mma.sync kernel: 64 counts and 128 registers of product do not fit.)
// kBlocks: how many blocks form a cluster, 2 or 1.
#pragma once

#include <cstdint>
#include <type_traits>

#include "stage_layout.h"
#include "tile_contract.h"

namespace gatedops::cuda {

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
  static constexpr int kValues = kConsumerRows * kTile / 128;
  static constexpr int kConsumerThreads = 128 * kConsumers;
  static constexpr int kFinisherThreads = 128;
  static constexpr int kThreads = kConsumerThreads + 128 + kFinisherThreads;

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
      kConsumerThreads * kConsumerRegisters + 128 * kProducerRegisters + kFinisherThreads * kFinisherRegisters <=
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

}  // namespace gatedops::cuda
