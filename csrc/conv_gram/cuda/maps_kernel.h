// A stretch of the convolutional recursion in registers.
//
// A convolution of stride 1 moves both pixels by the same offset. So the map R(p, p + d) of one displacement d, an
// image of p, goes through all layers by itself. Displacements are counted modulo the size: the map of d holds the
// pixels whose partner lies d further on and, behind a split, those whose partner lies d - size further on. All P maps
// then have P pixels, and no lane idles. Taps that would cross the split or the edge are zero. With circular padding
// every tap counts.
//
// One warp holds a map. A lane has a column, and the rows are in its registers. A warp holds several maps of narrow
// images side by side. A box sums rows in registers, then columns by shuffles. The overlap of the masks is made by
// population counts. The first-level cache holds their gates, because the blocks of a pair, one for each displacement
// of the rows, read the same gates. Only gates and the few numbers of x are read, and each block of a pair writes one
// sum.
//
// The time of one number of one layer of 3 x 3 and 64 channels, in cycles of one multiprocessor of sm_90:
//
// | instructions                                         | cycles | what bounds them                      |
// |------------------------------------------------------|--------|---------------------------------------|
// | 28 in the machine code, for 32 numbers               |   7/32 | the four schedulers                   |
// | 2 POPC                                               |    1/8 | population counts, 16 a cycle         |
// | loads of 16 bytes of gates                           |    1/8 | the first-level cache, 128 B a cycle  |
// | 2 SHFL                                               |   1/16 | shuffles, 32 a cycle                  |
// | loads and shuffles, which share a queue              |   3/16 | that queue                            |
//
// The schedulers bound it: 4.6 numbers a cycle. Tensor cores would count faster, but in tiles of (p, p'), and boxes
// need the diagonals of these. Latencies are not measured here.
#pragma once

#include <type_traits>

#include "device.h"
#include "steps.h"

namespace gatedops::cuda {

// A number that the compiler knows.
template <int kValue>
struct Constant {
  GATEDOPS_HOST_DEVICE constexpr operator int() const {
    return kValue;
  }
};

// Counts start at this number, see count_as.
template <class T>
constexpr int32_t kMapCountSeed = sizeof(T) == 4 ? 0x4B000000 : 0;

// Returns the sums of the lanes of a warp in shared memory, [sum][lane]. Those of all warps lie before the slots.
__device__ __forceinline__ double* lane_sums(int warp) {
  return reinterpret_cast<double*>(conv_shared_memory()) + warp * kMaxSums * kWarp;
}

// If kSquare, images are kRows x kRows, and offsets are constants. Otherwise images have at most kRows rows.
template <class T, int kRows, bool kSquare>
class MapWarp {
 public:
  __device__ __forceinline__
  MapWarp(const ConvBatch<T>& batch, const Stretch& stretch, int64_t pair, int shift_y, int warp, int lane)
      : batch_(batch),
        height_(stretch.height),
        width_(stretch.width),
        shift_y_(shift_y),
        parts_(stretch.parts()),
        warp_(warp),
        lane_(lane) {
    rows_ = pair_at(batch.pairs, pair);
    const int group = lane / width();
    group_ = group < stretch.maps_per_warp() ? group : 0;  // Spare lanes repeat the first map; nothing reads them.
    column_ = group_ == group ? lane % width() : 0;
    spare_ = group_ != group;
    slots_ = stretch.warps * kMaxSums * kWarp * static_cast<int>(sizeof(double) / sizeof(T)) +
             warp * stretch.slots * kRows * kWarp + lane;
    for (int k = 0; k < kMaxSums; ++k) {
      lane_sums(warp)[k * kWarp + lane] = 0.0;
    }
  }

  // Runs all steps at the displacements of columns first, first + 1, ..., one for each map of the warp, up to last - 1.
  __device__ __forceinline__ void run(const Stretch& stretch, int first, int last) {
    live_ = !spare_ && first + group_ < last;
    shift_x_ = live_ ? first + group_ : 0;
#pragma unroll 1
    for (int k = 0; k < stretch.steps; ++k) {
      const MapStep& step = stretch.step[k];
      switch (step.op) {
        case MapOp::input:
          input(step);
          break;
        case MapOp::constant:
          constant(step);
          break;
        case MapOp::box:
          box(step);
          break;
        case MapOp::add:
          add(step);
          break;
        case MapOp::load:
          load(step);
          break;
        case MapOp::save:
          save(step.slot);
          break;
        case MapOp::store:
          store(step);
          break;
        case MapOp::sum:
          sum(step);
          break;
      }
    }
  }

 private:
  __device__ __forceinline__ int height() const {
    return kSquare ? kRows : height_;
  }
  __device__ __forceinline__ int width() const {
    return kSquare ? kRows : width_;
  }
  __device__ __forceinline__ bool has_row(int row) const {
    return kSquare || row < height_;
  }

  // Calls use(row, at, y_at) for rows of a map with the places of its pixels p and p'. Columns lie `step` numbers
  // apart.
  template <int kFirst, int kCount, class Number, class Step, class Use>
  __device__ __forceinline__ void each_row(const Number* x, const Number* y, Step step, const Use& use) const {
    const int column = column_ + shift_x_, pitch = width() * step;
    x = kept(x + column_ * step);
    y = kept(y + (column < width() ? column : column - width()) * step + shift_y_ * pitch);
    const Number* wrapped = kept(y - height() * pitch);
    if constexpr (kSquare) {
#pragma unroll
      for (int r = kFirst; r < kFirst + kCount; ++r) {
        use(r, x + r * pitch, (r + shift_y_ < kRows ? y : wrapped) + r * pitch);
      }
    } else {  // The offset grows with each row, because a multiple of the pitch for each row takes too many registers.
      int offset = kFirst * pitch;
#pragma unroll
      for (int r = kFirst; r < kFirst + kCount; ++r, offset += pitch) {
        if (r < height_) {
          use(r, x + offset, (r + shift_y_ < height_ ? y : wrapped) + offset);
        }
      }
    }
  }
  // Returns where the map lies in the store.
  __device__ __forceinline__ T* stored(int64_t place) const {
    const int64_t area = height() * width();
    const int64_t pair = blockIdx.x / parts_;
    return batch_.store + pair * batch_.numbers + place + (shift_y_ * width() + shift_x_) * area;
  }
  __device__ __forceinline__ T& slot(int index, int row) const {
    return reinterpret_cast<T*>(conv_shared_memory())[slots_ + (index * kRows + row) * kWarp];
  }
  __device__ __forceinline__ void input(const MapStep& step) {
    const auto scale = static_cast<T>(step.scale);
    const int area = height() * width();
    const T* x = batch_.left.x + rows_.i * batch_.left.columns + step.first;
    const T* y = batch_.right.x + rows_.j * batch_.right.columns + step.first;
    each_row<0, kRows>(x, y, kOne, [&](int r, const T* at, const T* y_at) {
      T total = times(*at, *y_at);
#pragma unroll 1
      for (int c = 1; c < step.channels; ++c) {
        total = plus(total, times(at[c * area], y_at[c * area]));
      }
      map_[r] = times(total, scale);
    });
  }

  __device__ __forceinline__ void constant(const MapStep& step) {
    const bool on = !(step.has(kSameRow) && shift_y_ != 0) && !(step.has(kSameColumn) && shift_x_ != 0);
    const T value = on ? static_cast<T>(step.scale) : T(0);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      map_[r] = value;
    }
  }

  // Calls use(row, number) for the numbers of the operand of a step.
  template <class Use>
  __device__ __forceinline__ void each_of_operand(const MapStep& step, const Use& use) const {
    if (step.slot >= 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        use(r, slot(step.slot, r));
      }
    } else {
      const T* from = stored(step.place);
      each_row<0, kRows>(from, from, kOne, [&](int r, const T* at, const T*) { use(r, *at); });
    }
  }

  __device__ __forceinline__ void load(const MapStep& step) {
    each_of_operand(step, [&](int r, T number) { map_[r] = number; });
  }

  __device__ __forceinline__ void save(int index) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      slot(index, r) = map_[r];
    }
  }

  __device__ __forceinline__ void store(const MapStep& step) {
    T* to = stored(step.place);
    if (live_) {
      each_row<0, kRows>(to, to, kOne, [&](int r, const T* at, const T*) { to[at - to] = map_[r]; });
    }
  }

  __device__ __forceinline__ void add(const MapStep& step) {
    scale_and_shift(step.scale, 0.0);
    if (step.slot >= 0 || step.place >= 0) {
      const auto scale = static_cast<T>(step.scale2);
      each_of_operand(step, [&](int r, T number) { map_[r] = plus(map_[r], times(number, scale)); });
    }
    scale_and_shift(1.0, step.constant);
  }

  __device__ __forceinline__ void scale_and_shift(double scale, double offset) {
    if (scale != 1.0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        map_[r] = times(map_[r], static_cast<T>(scale));
      }
    }
    if (offset != 0.0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        map_[r] = plus(map_[r], static_cast<T>(offset));
      }
    }
  }

  __device__ __forceinline__ void sum(const MapStep& step) {
    T chain[4] = {T(0), T(0), T(0), T(0)};  // These sums do not wait for each other.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (has_row(r)) {
        chain[r % 4] = plus(chain[r % 4], map_[r]);
      }
    }
    const T total = plus(plus(chain[0], chain[1]), plus(chain[2], chain[3]));
    if (live_ && !(step.has(kAtZero) && (shift_y_ != 0 || shift_x_ != 0))) {
      lane_sums(warp_)[step.slot * kWarp + lane_] += static_cast<double>(total);
    }
  }

  __device__ __forceinline__ void box(const MapStep& step) {
    if (step.is_3x3()) {
      step.has(kCircular) ? box_3x3<true>() : box_3x3<false>();
    } else if (!step.is_pointwise()) {
      box_of_any_window(step);
    }
    scale_and_shift(step.scale, step.constant);
    if (step.used > 0) {
      multiply_overlaps(step);
    }
  }

  template <bool kWraps>
  __device__ __forceinline__ void box_3x3() {
    const int split_y = height() - shift_y_, split_x = width() - shift_x_;  // Pixels behind have wrapped round.
    const int base = group_ * width(), last = width() - 1;
    const int left_lane = base + (column_ > 0 ? column_ - 1 : last);
    const int right_lane = base + (column_ < last ? column_ + 1 : 0);
    const bool left_counts = kWraps || (column_ > 0 && column_ != split_x);
    const bool right_counts = kWraps || (column_ < last && column_ + 1 != split_x);
    const T top = map_[0];
    T above = kWraps ? last_row() : T(0);  // This is 0 if the row above does not count.
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (has_row(r)) {
        const T here = map_[r], next = map_[r + 1 < kRows ? r + 1 : 0];
        // This says that the row below counts.
        const bool joined = kWraps || r + 1 != split_y;
        const T below = r + 1 == height() ? (kWraps ? top : T(0)) : joined ? next : T(0);
        const T column = plus(plus(above, here), below);
        above = joined ? here : T(0);
        const T left = shuffled(column, left_lane), right = shuffled(column, right_lane);
        map_[r] = plus(plus(left_counts ? left : T(0), column), right_counts ? right : T(0));
      }
    }
  }

  __device__ __forceinline__ T last_row() const {
    T last = map_[0];
#pragma unroll
    for (int r = 1; r < kRows; ++r) {
      last = has_row(r) ? map_[r] : last;
    }
    return last;
  }

  // Returns where a tap that starts at `from` ends along an axis of maps that split at `split`, or -1 if it adds
  // nothing.
  __device__ __forceinline__ static int tap(int from, int offset, int size, int split, bool circular) {
    int to = from + offset;
    if (circular) {
      to %= size;
      return to < 0 ? to + size : to;
    }
    return to >= 0 && to < size && (from < split) == (to < split) ? to : -1;
  }

  // Uses two slots, because registers have no index. Each lane reads only its own column of a slot, so that no lane has
  // to wait for another.
  __device__ __forceinline__ void box_of_any_window(const MapStep& step) {
    const bool wraps = step.has(kCircular);
    save(step.slot);
#pragma unroll 1
    for (int r = 0; r < height(); ++r) {
      T column = T(0);
#pragma unroll 1
      for (int i = 0; i < step.kernel_y; ++i) {
        const int row = tap(r, i * step.dilation_y - step.pad_y, height(), height() - shift_y_, wraps);
        column = plus(column, row >= 0 ? slot(step.slot, row) : T(0));
      }
      T total = T(0);
#pragma unroll 1
      for (int j = 0; j < step.kernel_x; ++j) {
        const int at = tap(column_, j * step.dilation_x - step.pad_x, width(), width() - shift_x_, wraps);
        const T found = shuffled(column, group_ * width() + (at >= 0 ? at : column_));
        total = plus(total, at >= 0 ? found : T(0));
      }
      slot(step.slot + 1, r) = total;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      map_[r] = slot(step.slot + 1, r);
    }
  }

  __device__ __forceinline__ void multiply_overlaps(const MapStep& step) {
    if (step.used == 2 && step.stride == 2) {  // There are 33 to 64 channels.
      multiply_rows<0, 8>(step, Constant<2>{});
    } else {
      multiply_rows<0, 4>(step, step.stride);
    }
  }

  // Multiplies rows kFirst and up, kCounted at a time. Masks of images have an even number of words at each pixel. If
  // the number in use is odd, the last word is left out.
  template <int kFirst, int kCounted, class Stride>
  __device__ __forceinline__ void multiply_rows(const MapStep& step, Stride stride) {
    int32_t counts[kCounted];
#pragma unroll
    for (int r = 0; r < kCounted; ++r) {
      counts[r] = kMapCountSeed<T>;
    }
    constexpr bool kOnePair = !std::is_same_v<Stride, int>;
    const int used = kOnePair ? 2 : step.used;
#pragma unroll 1
    for (int word = 0; word < used; word += 2) {
      const uint32_t* x = batch_.left.words + rows_.i * batch_.left.words_stride + step.first + word;
      const uint32_t* y = batch_.right.words + rows_.j * batch_.right.words_stride + step.first + word;
      const uint32_t high = word + 1 < used ? 0xffffffffu : 0u;
      each_row<kFirst, kCounted>(x, y, stride, [&](int r, const uint32_t* at, const uint32_t* y_at) {
        const WordPair a = word_pair(at), b = word_pair(y_at);
        counts[r - kFirst] += population(a.low & b.low) + population(a.high & b.high & high);
      });
    }
#pragma unroll
    for (int r = 0; r < kCounted; ++r) {
      map_[kFirst + r] = times(map_[kFirst + r], count_as(counts[r], T()));
    }
    if constexpr (kFirst + kCounted < kRows) {
      if (has_row(kFirst + kCounted)) {
        multiply_rows<kFirst + kCounted, kCounted>(step, stride);
      }
    }
  }

  static constexpr Constant<1> kOne{};
  const ConvBatch<T>& batch_;
  RowPair rows_;
  int height_, width_, shift_y_, shift_x_ = 0;
  unsigned parts_;
  int warp_, lane_, group_, column_;
  // The numbers of this lane begin here in shared memory.
  int slots_;
  bool live_ = false, spare_;
  T map_[kRows] = {};  // Only rows below the height are used.
};

// Each pair has stretch.parts() blocks. The warps of a block share the displacements of the columns.
template <class T, int kRows, bool kSquare>
__device__ __forceinline__ void run_stretch(const ConvBatch<T>& batch, const Stretch& stretch) {
  const int parts = stretch.parts(), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t pair = blockIdx.x / parts;
  const int part = static_cast<int>(blockIdx.x % parts);
  MapWarp<T, kRows, kSquare> maps(batch, stretch, pair, part, warp, lane);
  const int shifts = stretch.at_zero_only ? 1 : stretch.width, side_by_side = stretch.maps_per_warp();
  // All warps take the same number of turns. Otherwise the compiler assumes that the lanes of a warp diverge.
#pragma unroll 1
  for (int turn = 0; turn < shifts; turn += stretch.warps * side_by_side) {
    maps.run(stretch, turn + warp * side_by_side, shifts);
  }
  for (int k = 0; k < stretch.sums; ++k) {
    double* of_lanes = lane_sums(warp) + k * kWarp;
    double total = of_lanes[lane];
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      total += shuffled(total, lane ^ distance);
    }
    if (lane == 0) {
      of_lanes[0] = total;
    }
  }
  __syncthreads();
  const int k = static_cast<int>(threadIdx.x);
  if (k < stretch.sums) {
    double total = 0.0;
    for (int w = 0; w < stretch.warps; ++w) {
      total += lane_sums(w)[k * kWarp];
    }
    batch.parts[(pair * stretch.sums + k) * parts + part] = total;
  }
}

}  // namespace gatedops::cuda
