// The Gram kernel for sm_80 and later. It uses mma.sync on single bits (BMMA), and a cp.async pipeline for its
// operands. A persistent block computes tile after tile, and multiplies all layers of a tile before the tile leaves the
// registers.
//
// The products of the tensor cores bound it. One step of a float32 warp, 64 x 32 pairs x 256 gates, takes:
//
// | instruction                | count | what bounds it                                                          |
// |----------------------------|-------|-------------------------------------------------------------------------|
// | mma.sync m16n8k256 b1      |    16 | tensor cores: about 9e15 operations a second on an H200 (instructions.h)|
// | ldmatrix.x4                | 4 + 2 | shared memory, 3 KiB; not measured here                                 |
//
// Stages come from device memory or the L2 cache, 32 KiB for 128 x 128 pairs x 1024 gates: 16 KiB for each operand. On
// an A100 a stage multiplies for about 1000 cycles. At the end of a layer each of 64 values costs 3 instructions
// (scale, multiply, reset).
#pragma once

#include <cstdint>
#include <type_traits>

#include "arithmetic.h"
#include "contract_tile.h"
#include "layout.h"
#include "walk.h"
#include "write_tile.h"

namespace gatedops::cuda {

// The constants of a tile for a product of type Product: float, double, or int32_t if the counts themselves are wanted.
template <class Product>
struct Sm80Traits {
  using Value = Product;
  static constexpr bool kHasProduct = !std::is_same_v<Product, int32_t>;

  // A warp's part of the tile is 64 x 32 pairs, or 32 x 32 in float64. A thread holds a count and a product for each of
  // its pairs: 64 + 64 registers in float32, 32 + 64 in float64. Fragments take 24 more.
  static constexpr int kWarpRows = sizeof(Product) == 8 ? 32 : 64, kWarpCols = 32;
  // A tile is square, so that a symmetric problem has whole tiles on its diagonal.
  static constexpr int kTile = sizeof(Product) == 8 ? 64 : 128;
  static constexpr int kWarpsDown = kTile / kWarpRows, kWarpsAcross = kTile / kWarpCols;
  static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
  // 256 threads fill a multiprocessor's registers, in one block or in two of 128 threads.
  static constexpr int kBlocksPerMultiprocessor = 256 / kThreads;
  static constexpr int kMaxRegisters = 65536 / 256 - 1;

  static constexpr int kRowFragments = kWarpRows / 16, kColFragments = kWarpCols / 8;

  // One stage multiplies for about 1000 cycles on an A100, so two stages in flight hide the latency of device memory.
  // Three stages are 96 KiB, which every GPU from sm_80 on has, sm_86 and sm_89 included.
  static constexpr int kStages = 3;
  static constexpr int kOperandBytes = kTile * kRowBytes;
  static constexpr int kStageBytes = 2 * kOperandBytes;

  // A finished tile goes to the same memory, from which it is written in rows and, mirrored, in columns.
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

// Starts the copies of one operand's piece, words [first, first + words) of the tile's rows. Rows and words that do not
// exist become zeros, gates that are off.
template <class Traits>
__device__ __forceinline__ void load_operand(
    const GateRows& gates, int64_t first_row, int64_t first, int words, uint32_t address) {
  constexpr int kRowsAtOnce = Traits::kThreads / kRowChunks;
  const int chunk = threadIdx.x % kRowChunks;
  const int left = words - chunk * kChunkWords;
  if (chunk * kChunkWords >= steps_of(words) * kStepWords) {
    return;
  }
  const int bytes = 4 * max(0, min(left, kChunkWords));
  int row = threadIdx.x / kRowChunks;
  const uint32_t* from = gates.words + (first_row + row) * gates.stride + first + chunk * kChunkWords;
#pragma unroll
  for (int i = 0; i < Traits::kTile / kRowsAtOnce; ++i) {
    const bool inside = first_row + row < gates.rows && bytes > 0;
    copy_async(address + operand_offset(row, chunk), inside ? from : gates.words, inside ? bytes : 0);
    row += kRowsAtOnce;
    from += kRowsAtOnce * gates.stride;
  }
}

template <class Traits>
__device__ __forceinline__ void load_piece(
    const GramProblem& p, const TileRect& tile, const PieceCursor& piece, uint32_t stage) {
  const Layer& layer = piece.layer();
  const bool sigma = p.layers.is_sigma(piece.layer_index());
  load_operand<Traits>(sigma ? p.sigma_x : p.x, tile.i, int64_t{layer.x_first} + piece.word(), piece.words(), stage);
  load_operand<Traits>(
      sigma ? p.sigma_y : p.y, tile.j, int64_t{layer.y_first} + piece.word(), piece.words(),
      stage + Traits::kOperandBytes);
}

// Returns the index of register i of a fragment among the accumulators of a warp.
template <class Traits>
__device__ __forceinline__ constexpr int register_of(int row_fragment, int col_fragment, int i) {
  return (row_fragment * Traits::kColFragments + col_fragment) * 4 + i;
}

template <class Traits>
struct WarpTile {
  static constexpr int kValues = Traits::kRowFragments * Traits::kColFragments * 4;

  // The warp's part begins at (row, col) inside the tile.
  int lane, row, col;

  __device__ __forceinline__ WarpTile()
      : lane(threadIdx.x % 32),
        row(threadIdx.x / 32 / Traits::kWarpsAcross * Traits::kWarpRows),
        col(threadIdx.x / 32 % Traits::kWarpsAcross * Traits::kWarpCols) {}

  // Does one tensor-core step of a stage: 256 gates or 32 bytes.
  template <bool kBytes>
  __device__ __forceinline__ void multiply_step(uint32_t stage, int step, int32_t (&sums)[kValues]) const {
    uint32_t a[Traits::kRowFragments][4], b[Traits::kColFragments / 2][4];
#pragma unroll
    for (int r = 0; r < Traits::kRowFragments; ++r) {
      load_matrices(a[r], stage + operand_offset(row + r * 16 + a_row(lane), step * 2 + a_chunk(lane)));
    }
#pragma unroll
    for (int c = 0; c < Traits::kColFragments / 2; ++c) {
      const uint32_t offset = operand_offset(col + c * 16 + b_row(lane), step * 2 + b_chunk(lane));
      load_matrices(b[c], stage + Traits::kOperandBytes + offset);
    }
#pragma unroll
    for (int r = 0; r < Traits::kRowFragments; ++r) {
#pragma unroll
      for (int c = 0; c < Traits::kColFragments; ++c) {
        const uint32_t* columns = b[c / 2] + c % 2 * 2;
        auto& part = *reinterpret_cast<int32_t (*)[4]>(&sums[register_of<Traits>(r, c, 0)]);
        if constexpr (kBytes) {
          multiply_bytes(part, a[r], columns[0], columns[1]);
        } else {
          count_overlaps(part, a[r], columns[0], columns[1]);
        }
      }
    }
  }

  template <bool kBytes>
  __device__ __forceinline__ void multiply_piece(uint32_t stage, int steps, int32_t (&sums)[kValues]) const {
#pragma unroll
    for (int step = 0; step < kStageSteps; ++step) {
      if (step < steps) {
        multiply_step<kBytes>(stage, step, sums);
      }
    }
  }

  // Copies the warp's values to their place in the tile.
  template <class Value>
  __device__ __forceinline__ void stage_values(const Value (&values)[kValues], Value* tile) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int fragment = i / 4;
      const Place place = accumulator_place(lane, i % 4);
      const int r = row + fragment / Traits::kColFragments * 16 + place.row;
      const int c = col + fragment % Traits::kColFragments * 8 + place.col;
      tile[tile_offset<Traits::kTile>(r, c)] = values[i];
    }
  }
};

// Computes the counts, or the product over layers [begin, end), of one tile. The stages are empty before and after.
template <class Traits>
__device__ __forceinline__ void compute_tile(
    const GramProblem& p, const TileRect& tile, int begin, int end, unsigned char* shared) {
  using Value = typename Traits::Value;
  constexpr int kValues = WarpTile<Traits>::kValues;
  constexpr int kAhead = Traits::kStages - 1;
  const WarpTile<Traits> warp;
  const uint32_t stages = shared_address(shared);
  int32_t counts[kValues];
  Value product[Traits::kHasProduct ? kValues : 1];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    counts[i] = kCountSeed<Value>;
    if constexpr (Traits::kHasProduct) {
      product[i] = Value(1);
    }
  }

  PieceCursor loading(p.layers, begin, end);
  int load_stage = 0;
  const auto load_next = [&] {
    if (!loading.done()) {
      load_piece<Traits>(p, tile, loading, stages + load_stage * Traits::kStageBytes);
      loading.advance();
      load_stage = load_stage + 1 == Traits::kStages ? 0 : load_stage + 1;
    }
    commit_copies();  // At the end an empty group keeps the number of groups in flight.
  };
  for (int i = 0; i < kAhead; ++i) {
    load_next();
  }
  int stage = 0;
  for (PieceCursor piece(p.layers, begin, end); !piece.done(); piece.advance()) {
    wait_for_copies<kAhead - 1>();
    __syncthreads();  // Now all threads see this stage, and none reads the one before it any more.
    load_next();
    const bool bytes = Traits::kHasProduct && p.layers.is_sigma(piece.layer_index());
    const uint32_t operands = stages + stage * Traits::kStageBytes;
    const int steps = steps_of(piece.words());
    bytes ? warp.template multiply_piece<true>(operands, steps, counts)
          : warp.template multiply_piece<false>(operands, steps, counts);
    stage = stage + 1 == Traits::kStages ? 0 : stage + 1;
    if constexpr (Traits::kHasProduct) {
      if (piece.closes_layer()) {
        bytes ? close_sigma(counts, product) : close_layer(piece.layer(), counts, product);
      }
    }
  }
  wait_for_copies<0>();
  __syncthreads();
  if constexpr (Traits::kHasProduct) {
    warp.stage_values(product, reinterpret_cast<Value*>(shared));
  } else {
    warp.stage_values(counts, reinterpret_cast<Value*>(shared));
  }
}

// Calls use(tile, first layer, end layer) for this block's units. A unit is a tile, or one layer of it if counts are
// wanted. If kByRows, a block computes all tiles of its rows one after the other.
template <class Traits, bool kByRows, class Use>
__device__ __forceinline__ void each_unit(const GramProblem& p, const Use& use) {
  if constexpr (kByRows) {
    for (int64_t row = blockIdx.x; row < p.schedule.rows; row += gridDim.x) {
      for (int64_t col = 0; col < p.schedule.cols; ++col) {
        use(tile_rect<Traits::kTile>(p, {row, col}), 0, p.layers.end());
      }
    }
  } else {
    const int planes = Traits::kHasProduct ? 1 : p.layers.count;
    for (int64_t unit = blockIdx.x; unit < p.schedule.tiles() * planes; unit += gridDim.x) {
      const int plane = static_cast<int>(unit % planes);
      use(tile_rect<Traits::kTile>(p, p.schedule.tile(unit / planes)), plane,
          Traits::kHasProduct ? p.layers.end() : plane + 1);
    }
  }
}

// Finish is WriteTile, ContractTile or SelectNeighbors.
template <class Traits, class Finish>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kBlocksPerMultiprocessor)
    gram_sm80(const __grid_constant__ GramProblem p) {
  using Value = typename Traits::Value;
  unsigned char* shared = shared_memory();
  auto* values = reinterpret_cast<Value*>(shared);
  auto* scratch = reinterpret_cast<Value*>(shared + Traits::kScratchOffset);
  const auto wait = [] { __syncthreads(); };
  each_unit<Traits, Finish::kByRows>(p, [&](const TileRect& tile, int begin, int end) {
    compute_tile<Traits>(p, tile, begin, end, shared);
    wait();
    Finish::template run<Traits::kThreads, Traits::kTile>(
        p, tile, Traits::kHasProduct ? 0 : begin, values, scratch, static_cast<int>(threadIdx.x), wait);
    wait();  // The copies of the next tile overwrite this memory.
  });
}

}  // namespace gatedops::cuda
