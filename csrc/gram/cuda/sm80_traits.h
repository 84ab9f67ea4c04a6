// Tile constants of the mma.sync kernel, for a product of type Product: float, double, or int32_t where the
// counts themselves are wanted.
#pragma once

#include <cstdint>
#include <type_traits>

#include "stage_layout.h"
#include "tile_contract.h"

namespace gatedops::cuda {

template <class Product>
struct Sm80Traits {
  using Value = Product;
  static constexpr bool kHasProduct = !std::is_same_v<Product, int32_t>;

  // A thread holds a count and a product for each pair of its warp's part of the tile: 64 x 32 pairs are
  // 64 + 64 registers in float32, 32 x 32 are 32 + 64 in float64; 24 more hold fragments.
  static constexpr int kWarpRows = sizeof(Product) == 8 ? 32 : 64, kWarpCols = 32;
  // Square, so that a symmetric problem has whole tiles on its diagonal.
  static constexpr int kTile = sizeof(Product) == 8 ? 64 : 128;
  static constexpr int kWarpsDown = kTile / kWarpRows, kWarpsAcross = kTile / kWarpCols;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  // 256 threads fill a multiprocessor's registers; of 128 threads two blocks do.
  static constexpr int kBlocksPerMultiprocessor = 256 / kThreads;
  static constexpr int kMaxRegisters = 65536 / 256 - 1;

  static constexpr int kRowFragments = kWarpRows / 16, kColFragments = kWarpCols / 8;

  // One stage multiplies for about 1000 cycles on an A100: two in flight hide device memory. Three stages are
  // 96 KiB, what every GPU from sm_80 on has, sm_86 and sm_89 included.
  static constexpr int kStages = 3;
  static constexpr int kOperandBytes = kTile * kRowBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;

  // Finished tiles pass through the same memory to be written in rows and, mirrored, in columns.
  static constexpr int kStagedBytes = kTile * kTile * static_cast<int>(sizeof(Product));
  static constexpr int kScratchOffset = (kStagedBytes + 15) / 16 * 16;
  static constexpr int kScratchBytes =
      kHasProduct ? ContractTile::scratch(kTile) * static_cast<int>(sizeof(Product)) : 0;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kScratchOffset + kScratchBytes <= kSharedBytes);

  static_assert(kTile % kWarpRows == 0 && kTile % kWarpCols == 0 && kWarpRows % 16 == 0 && kWarpCols % 16 == 0);
  static_assert(kThreads * kBlocksPerMultiprocessor == 256, "255 registers a thread");
  static_assert(kTile % (kThreads / kRowChunks) == 0, "threads load whole groups of rows");
  static_assert(kSharedBytes * kBlocksPerMultiprocessor <= 99 << 10, "shared memory of sm_86 and sm_89");
};

}  // namespace gatedops::cuda
