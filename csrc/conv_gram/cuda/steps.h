// What the conv_gram kernels get by value as their parameters. The host does not dereference the pointers in it.
//
// A register is stored, for each pair of inputs, as [displacement p' - p modulo the size][pixel p]. That is one number
// for each pair of pixels, without padding, and the numbers of one displacement, which a convolution of stride 1 reads
// together, lie side by side.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/cuda/host_device.h"

namespace gatedops::cuda {

constexpr int kWarp = 32;
constexpr int kMapEdge = 32;  // Maps that stay in registers have at most this height and width.
// A stretch has at most this many steps. With the batch they fit the 4 KiB of a kernel's parameters.
constexpr int kMaxSteps = 32;
constexpr int kMaxSlots = 8;  // A warp has at most this many maps in shared memory.
constexpr int kMaxSums = 4;   // A stretch has at most this many totals.
constexpr int kMaxWarps = 8;  // A block has at most this many warps.
constexpr int kEntryThreads = 256;
constexpr int64_t kMaxChannels = 1 << 22;  // Counts stay below 2^23, and so are exact in a float's mantissa.

// Says where the inputs x and the words of one side lie.
template <class T>
struct ConvSide {
  // Rows of x lie `columns` numbers apart.
  const T* x;
  int64_t columns;
  // Rows of words lie `words_stride` words apart.
  const uint32_t* words;
  int64_t words_stride;
};

// Pairs first .. first + count - 1 of all pairs, row by row. A symmetric problem has the pairs of its lower triangle.
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
  i += (i + 1) * (i + 2) / 2 <= t;  // The root was rounded, so i may be off by one.
  i -= i * (i + 1) / 2 > t;
  return {static_cast<int32_t>(i), static_cast<int32_t>(t - i * (i + 1) / 2)};
}

// What all kernels of a call share: a batch of pairs and where their registers are.
template <class T>
struct ConvBatch {
  ConvSide<T> left, right;
  PairRange pairs;
  // The store is laid out [pair][number], and a pair has `numbers` of them.
  T* store;
  int64_t numbers;
  // The partial sums of totals are laid out [pair][sum][part].
  double* parts;
  // These are the weights of pools.
  const double* weights;
  // The Gram is (n, m).
  T* out;
};

// The operation of a step of a stretch. It works on the map of one displacement, which a warp holds in registers.
enum class MapOp : int32_t {
  input,     // map = s <x(p), x'(p')>
  constant,  // map = s if the displacement is 0 along the axes of `flags`, else 0
  box,       // map = (s box(map) + constant) * overlap
  add,       // map = s map + s2 operand + constant
  load,      // map = operand
  save,      // slot = map
  store,     // store = map
  sum,       // sums[slot] += all pixels, with kAtZero only at displacement 0
};

enum MapFlag : int32_t { kCircular = 1, kSameRow = 2, kSameColumn = 4, kAtZero = 8 };

struct MapStep {
  MapOp op;
  // The slot of the operand; -1 if the operand is at `place` of the store. A box that is neither 3 x 3 nor pointwise
  // uses this slot and the next one.
  int32_t slot;
  int64_t place;
  // An input begins at this column of x, masks at this word.
  int64_t first;
  // An input has this many channels.
  int32_t channels;
  // The words of a mask that hold gates, 0 if there is no mask; and the words from one position to the next.
  int32_t used, stride;
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

// Consecutive instructions that never mix displacements. Their maps have one size.
struct Stretch {
  int32_t height, width;
  int32_t steps, sums, slots, warps;
  // This says that only displacement 0 is read.
  bool at_zero_only;
  MapStep step[kMaxSteps];

  // Returns how many blocks a pair has: one for each displacement of the rows.
  GATEDOPS_HOST_DEVICE int parts() const {
    return at_zero_only ? 1 : height;
  }
  GATEDOPS_HOST_DEVICE int maps_per_warp() const {
    return kWarp / width;
  }
  // Tells which kernel runs: there is one for squares of 8, of 16 and of 32 pixels, and one for all other sizes.
  GATEDOPS_HOST_DEVICE bool square() const {
    return height == width && (height == 8 || height == 16 || height == 32);
  }
  GATEDOPS_HOST_DEVICE int rows() const {
    return square() ? height : kMapEdge;
  }
  // Returns the bytes of shared memory of a block. Each warp has sums of its lanes, and slots.
  GATEDOPS_HOST_DEVICE int64_t shared_bytes(int64_t item) const {
    return int64_t{warps} * kWarp * (kMaxSums * 8 + slots * rows() * item);
  }
};

static_assert(sizeof(Stretch) + sizeof(ConvBatch<double>) <= 4000, "kernel parameters end at 4 KiB");

// The operation of a single instruction. A thread computes each number of its register. A gate is a box of one pixel.
enum class EntryOp : int32_t { input, constant, box, add, pool, select };

struct EntryStep {
  EntryOp op;
  // The flags are those of MapFlag.
  int32_t flags;
  // These are places in the store.
  int64_t out, src, src2;
  int64_t first, channels;
  // These mean the same as in MapStep.
  int32_t used, stride;
  int32_t in_y, in_x, out_y, out_x;
  int32_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
  // The weights of a pool begin here; it is -1 if all are 1.
  int64_t weights;
  double scale, scale2, constant;

  GATEDOPS_HOST_DEVICE bool has(MapFlag flag) const {
    return (flags & flag) != 0;
  }
};

// The total of a register over all pairs of pixels or, for a trace, over those with p = p'. It has `parts` parts.
// Thread t of part k sums the numbers k * threads + t, then every (parts * threads)-th.
struct TotalStep {
  int64_t src, numbers;  // The first `numbers` numbers count. Those of displacement 0 come first.
  int32_t parts;
};

// Computes store[out] = scale * the sum of all parts of sum number `sum`, one of `sums`.
struct CloseStep {
  int64_t out;
  int32_t sum, sums, parts;
  double scale;
};

// Numbers of the host that kernels read travel as parameters of launches. A copy from the host's memory would make the
// host wait for the GPU, and could not be captured in a CUDA graph. In a launch each thread stores one number, which
// takes 2 of the 4 KiB of a kernel's parameters.
struct Numbers {
  double* to;
  int32_t count;
  double values[kEntryThreads];
};
static_assert(sizeof(Numbers) <= 4096);

}  // namespace gatedops::cuda
