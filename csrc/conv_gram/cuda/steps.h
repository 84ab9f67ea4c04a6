// What the conv_gram kernels are told, by value. No pointer here is dereferenced on the host.
//
// A register is stored, for each pair of inputs, as [displacement p' - p modulo the size][pixel p]: as many numbers as
// there are pairs of pixels, none of them padding, and what a convolution of stride 1 reads of one displacement lies
// side by side.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

constexpr int kWarp = 32;
constexpr int kMapEdge = 32;   // largest height and width of maps that stay in registers
constexpr int kMaxSteps = 32;  // of a stretch: with the batch they fit the 4 KiB of a kernel's parameters
constexpr int kMaxSlots = 8;   // maps of a warp in shared memory
constexpr int kMaxSums = 4;    // totals of a stretch
constexpr int kMaxWarps = 8;   // of a block
constexpr int kEntryThreads = 256;
constexpr int64_t kMaxChannels = 1 << 22;  // counts stay below 2^23, exact in a float's mantissa

// Rows of one side.
template <class T>
struct ConvSide {
  const T* x;  // columns apart
  int64_t columns;
  const uint32_t* words;  // words_stride apart
  int64_t words_stride;
};

// Pairs first .. first + count - 1 of all pairs: row by row; of the lower triangle where symmetric.
struct PairRange {
  int64_t first, count, m;
  bool symmetric;
};

struct RowPair {
  int32_t i, j;
};

GATEDOPS_HOST_DEVICE RowPair pair_at(const PairRange& pairs, int64_t index) {
  const int64_t t = pairs.first + index;
  if (!pairs.symmetric) {
    return {static_cast<int32_t>(t / pairs.m), static_cast<int32_t>(t % pairs.m)};
  }
  auto i = static_cast<int64_t>((std::sqrt(8.0 * static_cast<double>(t) + 1.0) - 1.0) / 2);
  i += (i + 1) * (i + 2) / 2 <= t;  // the root is rounded
  i -= i * (i + 1) / 2 > t;
  return {static_cast<int32_t>(i), static_cast<int32_t>(t - i * (i + 1) / 2)};
}

// What all kernels of a call share: a batch of pairs and where their registers are.
template <class T>
struct ConvBatch {
  ConvSide<T> left, right;
  PairRange pairs;
  T* store;               // [pair][number]
  int64_t numbers;        // of a pair
  double* parts;          // sums of parts of a total, [pair][sum][part]
  const double* weights;  // of pools
  T* out;                 // (n, m)
};

// One step of a stretch. It works on one map, that of a displacement, which every warp holds in registers.
enum class MapOp : int32_t {
  input,     // map = s <x(p), x'(p')>
  constant,  // map = s where the displacement is 0 along the axes of `flags`, else 0
  box,       // map = (s box(map) + constant) * overlap
  add,       // map = s map + s2 operand + constant
  load,      // map = operand
  save,      // slot = map
  store,     // store = map
  sum,       // sums[slot] += all pixels; kAtZero: at displacement 0 only
};

enum MapFlag : int32_t { kCircular = 1, kSameRow = 2, kSameColumn = 4, kAtZero = 8 };

struct MapStep {
  MapOp op;
  int32_t slot;  // of the operand; -1: at `place` of the store. A box that is not 3 x 3: the first of two to use
  int64_t place;
  int64_t first;         // column of x, or word of the masks
  int32_t channels;      // of an input
  int32_t used, stride;  // words of a mask that hold gates (0: no mask), and from one position to the next
  int32_t flags;
  int32_t kernel_y, kernel_x, pad_y, pad_x, dilation_y, dilation_x;
  double scale, scale2, constant;

  GATEDOPS_HOST_DEVICE bool has(MapFlag flag) const {
    return (flags & flag) != 0;
  }
  GATEDOPS_HOST_DEVICE bool is_3x3() const {
    return kernel_y == 3 && kernel_x == 3 && pad_y == 1 && pad_x == 1 && dilation_y == 1 && dilation_x == 1;
  }
  GATEDOPS_HOST_DEVICE bool is_pointwise() const {
    return kernel_y == 1 && kernel_x == 1 && pad_y == 0 && pad_x == 0;
  }
};

// Consecutive instructions that never mix displacements, all of one size.
struct Stretch {
  int32_t height, width;
  int32_t steps, sums, slots, warps;
  bool at_zero_only;  // nothing but displacement 0 is read
  MapStep step[kMaxSteps];

  GATEDOPS_HOST_DEVICE int parts() const {  // blocks of a pair: one for each displacement of the rows
    return at_zero_only ? 1 : height;
  }
  GATEDOPS_HOST_DEVICE int maps_per_warp() const {
    return kWarp / width;
  }
  // Of the kernel: one for squares of 8, 16 and 32 pixels, and one for all the rest.
  GATEDOPS_HOST_DEVICE bool square() const {
    return height == width && (height == 8 || height == 16 || height == 32);
  }
  GATEDOPS_HOST_DEVICE int rows() const {
    return square() ? height : kMapEdge;
  }
  // Of each warp: sums of its lanes, and slots.
  GATEDOPS_HOST_DEVICE int64_t shared_bytes(int64_t item) const {
    return int64_t{warps} * kWarp * (kMaxSums * 8 + slots * rows() * item);
  }
};

static_assert(sizeof(Stretch) + sizeof(ConvBatch<double>) <= 4000, "kernel parameters end at 4 KiB");

// One instruction by itself: a thread for each number of its register.
enum class EntryOp : int32_t { input, constant, box, add, pool, select };  // a gate is a box of one pixel

struct EntryStep {
  EntryOp op;
  int32_t flags;           // MapFlag
  int64_t out, src, src2;  // places in the store
  int64_t first, channels;
  int32_t used, stride;  // as of MapStep
  int32_t in_y, in_x, out_y, out_x;
  int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  int64_t weights;  // of a pool; -1: all 1
  double scale, scale2, constant;

  GATEDOPS_HOST_DEVICE bool has(MapFlag flag) const {
    return (flags & flag) != 0;
  }
};

// The total of a register over all pairs of pixels (trace: of p = p'), in `parts` parts: part k sums numbers k, k +
// parts * threads, ...
struct TotalStep {
  int64_t src, numbers;  // numbers of it that count; those of displacement 0 are the first
  int32_t parts;
};

// store[out] = scale * sum of the parts of sum number `sum` of `sums`.
struct CloseStep {
  int64_t out;
  int32_t sum, sums, parts;
  double scale;
};

// Numbers of the host that kernels read travel as parameters of launches. A copy from the host's memory would make the
// host wait for the GPU, and could not be captured in a CUDA graph. One launch stores a number a thread: 2 of the 4 KiB
// of a kernel's parameters.
struct Numbers {
  double* to;
  int32_t count;
  double values[kEntryThreads];
};
static_assert(sizeof(Numbers) <= 4096);

}  // namespace gatedops::cuda
