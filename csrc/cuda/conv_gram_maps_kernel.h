// A stretch of the convolutional recursion in registers.
//
// A convolution of stride 1 moves both pixels by the same offset, so the map R(p, p + d) of one displacement d, an image
// of p, goes through all layers by itself. Displacements are counted modulo the size: the map of d holds the pixels whose
// partner lies d further on and, behind a split, those whose partner lies d - size further on. So all P maps have P
// pixels and no lane idles; taps that would cross the split, or the edge, are zero (with circular padding nothing is).
//
// One warp holds a map: lane = column, rows in registers; of narrow images several maps side by side. A box sums rows in
// registers, then columns by shuffles. The overlap of the masks is made by population counts from gates that the
// first-level cache holds: the blocks of a pair, one for each displacement of the rows, read the same ones. Only gates
// and the few numbers of x are read; a pair leaves one sum for each block.
//
// The cost of one number of one layer, for 3 x 3 and 64 channels, in cycles of one multiprocessor of sm_90: 2 population
// counts 1/8, 16 bytes of gates 1/8, 2 shuffles 1/16, and some 20 instructions 1/6. Loads and shuffles share a queue: 3/16.
// The bound is about 5 numbers a cycle; 10 us for a pair of 32 x 32 images and 4 layers are 1.8 on 132 multiprocessors.
// Tensor cores would make the counts sooner, but as tiles of (p, p'), whose diagonals the boxes need.
#pragma once

#include "conv_gram_device.h"
#include "conv_gram_steps.h"

namespace gatedops::cuda {

constexpr int kCounted = 8;  // rows whose overlaps are counted together

// Seed of counts, see count_as.
template <class T>
constexpr int32_t kMapCountSeed = sizeof(T) == 4 ? 0x4B000000 : 0;

template <class T, int kRows>
class MapWarp {
 public:
  __device__ __forceinline__ MapWarp(const ConvBatch<T>& batch, const Stretch& stretch, int64_t pair, int shift_y, int lane)
      : batch_(batch),
        height_(stretch.height),
        width_(stretch.width),
        shift_y_(shift_y),
        lane_(lane),
        pair_(pair) {
    const RowPair rows = pair_at(batch.pairs, pair);
    x_ = batch.left.x + rows.i * batch.left.columns;
    y_ = batch.right.x + rows.j * batch.right.columns;
    x_words_ = batch.left.words + rows.i * batch.left.words_stride;
    y_words_ = batch.right.words + rows.j * batch.right.words_stride;
    const int group = lane / width_;
    group_ = group < stretch.maps_per_warp() ? group : 0;  // lanes left over repeat the first map and are not read
    column_ = group_ == group ? lane % width_ : 0;
    spare_ = group_ != group;
    slots_ = reinterpret_cast<T*>(conv_shared_memory() + kMaxWarps * kMaxSums * 8) +
             int64_t{stretch.slots} * kRows * kWarp * (threadIdx.x / kWarp);
  }

  // All steps at the displacements of columns first, first + 1, ... of the maps side by side; last: one past the last.
  __device__ __forceinline__ void run(const Stretch& stretch, int first, int last, double (&sums)[kMaxSums]) {
    live_ = !spare_ && first + group_ < last;
    shift_x_ = live_ ? first + group_ : 0;
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
          sum(step, sums);
          break;
      }
    }
  }

 private:
  // Calls use(row, of x, of y) for rows of a map: offsets of their pixels, `step` a pixel. Offsets grow from row to row,
  // for multiples that stay the same from step to step the compiler would keep, in more registers than there are.
  template <int kFirst, int kCount, class Use>
  __device__ __forceinline__ void each_row(int step, const Use& use) const {
    const int pitch = width_ * step, x = column_ + shift_x_, y = kFirst + shift_y_;
    int here = kFirst * pitch + column_ * step;
    int there = (y < height_ ? y : y - height_) * pitch + (x < width_ ? x : x - width_) * step;
#pragma unroll
    for (int r = kFirst; r < kFirst + kCount; ++r) {
      if (r < height_) {
        use(r, here, there);
        here += pitch;
        there += r + 1 + shift_y_ == height_ ? pitch - height_ * pitch : pitch;
      }
    }
  }
  // Where the map lies in the store.
  __device__ __forceinline__ T* stored(int64_t place) const {
    const int64_t area = height_ * width_;
    return batch_.store + pair_ * batch_.numbers + place + (shift_y_ * width_ + shift_x_) * area;
  }
  __device__ __forceinline__ T& slot(int index, int row) const {
    return slots_[(index * kRows + row) * kWarp + lane_];
  }
  __device__ __forceinline__ void input(const MapStep& step) {
    const T *x = x_ + step.first, *y = y_ + step.first;
    const auto scale = static_cast<T>(step.scale);
    const int area = height_ * width_;
    each_row<0, kRows>(1, [&](int r, int here, int there) {
      T total = times(x[here], y[there]);
      for (int c = 1; c < step.channels; ++c) {
        total = plus(total, times(x[here + c * area], y[there + c * area]));
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
      each_row<0, kRows>(1, [&](int r, int here, int) { use(r, from[here]); });
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
      each_row<0, kRows>(1, [&](int r, int here, int) { to[here] = map_[r]; });
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

  __device__ __forceinline__ void sum(const MapStep& step, double (&sums)[kMaxSums]) {
    T chain[4] = {T(0), T(0), T(0), T(0)};  // sums that do not wait for each other
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < height_) {
        chain[r % 4] = plus(chain[r % 4], map_[r]);
      }
    }
    const T total = plus(plus(chain[0], chain[1]), plus(chain[2], chain[3]));
    const bool counts = live_ && !(step.has(kAtZero) && (shift_y_ != 0 || shift_x_ != 0));
#pragma unroll
    for (int k = 0; k < kMaxSums; ++k) {  // no index that is not known to the compiler: registers have none
      sums[k] += k == step.slot && counts ? static_cast<double>(total) : 0.0;
    }
  }

  __device__ __forceinline__ void box(const MapStep& step) {
    if (step.is_3x3()) {
      box_3x3(step.has(kCircular));
    } else if (!step.is_pointwise()) {
      box_of_any_window(step);
    }
    scale_and_shift(step.scale, step.constant);
    if (step.used > 0) {
      multiply_overlaps(step);
    }
  }

  __device__ __forceinline__ void box_3x3(bool circular) {
    const int split_y = height_ - shift_y_, split_x = width_ - shift_x_;  // what lies behind has wrapped round
    const int base = group_ * width_;
    const int left_lane = base + (column_ > 0 ? column_ - 1 : width_ - 1);
    const int right_lane = base + (column_ + 1 < width_ ? column_ + 1 : 0);
    const bool left_counts = circular || (column_ > 0 && column_ != split_x);
    const bool right_counts = circular || (column_ + 1 < width_ && column_ + 1 != split_x);
    const T top = map_[0];
    T above = last_row();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < height_) {
        const bool ends = r + 1 == height_;
        const bool above_counts = circular || (r > 0 && r != split_y);
        const bool below_counts = circular || (!ends && r + 1 != split_y);
        const T here = map_[r], below = ends ? top : map_[r + 1 < kRows ? r + 1 : 0];
        const T column = plus(plus(above_counts ? above : T(0), here), below_counts ? below : T(0));
        above = here;
        const T left = shuffled(column, left_lane), right = shuffled(column, right_lane);
        map_[r] = plus(plus(left_counts ? left : T(0), column), right_counts ? right : T(0));
      }
    }
  }

  __device__ __forceinline__ T last_row() const {
    T last = map_[0];
#pragma unroll
    for (int r = 1; r < kRows; ++r) {
      last = r < height_ ? map_[r] : last;
    }
    return last;
  }

  // Where a tap that starts at `from` ends up along an axis of maps that split at `split`, or -1: it adds nothing.
  __device__ __forceinline__ static int tap(int from, int offset, int size, int split, bool circular) {
    int to = from + offset;
    if (circular) {
      to %= size;
      return to < 0 ? to + size : to;
    }
    return to >= 0 && to < size && (from < split) == (to < split) ? to : -1;
  }

  // By way of two slots, since registers have no index. Lanes read their own column of them, so nothing has to wait.
  __device__ __forceinline__ void box_of_any_window(const MapStep& step) {
    save(step.slot);
    for (int r = 0; r < height_; ++r) {
      T column = T(0);
      for (int i = 0; i < step.kernel_y; ++i) {
        const int offset = i * step.dilation_y - step.pad_y;
        const int row = tap(r, offset, height_, height_ - shift_y_, step.has(kCircular));
        column = plus(column, row >= 0 ? slot(step.slot, row) : T(0));
      }
      T total = T(0);
      for (int j = 0; j < step.kernel_x; ++j) {
        const int offset = j * step.dilation_x - step.pad_x;
        const int at = tap(column_, offset, width_, width_ - shift_x_, step.has(kCircular));
        const T found = shuffled(column, group_ * width_ + (at >= 0 ? at : column_));
        total = plus(total, at >= 0 ? found : T(0));
      }
      slot(step.slot + 1, r) = total;
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < height_) {
        map_[r] = slot(step.slot + 1, r);
      }
    }
  }

  __device__ __forceinline__ void multiply_overlaps(const MapStep& step) {
#pragma unroll
    for (int first = 0; first < kRows; first += kCounted) {
      switch (first) {  // the rows are constants to the compiler
        case 0:
          multiply_rows<0>(step);
          break;
        case kCounted:
          multiply_rows<kCounted % kRows>(step);
          break;
        case 2 * kCounted:
          multiply_rows<2 * kCounted % kRows>(step);
          break;
        default:
          multiply_rows<3 * kCounted % kRows>(step);
      }
    }
  }

  // Masks of images have an even number of words at each pixel; of an odd number in use the last is left out.
  template <int kFirst>
  __device__ __forceinline__ void multiply_rows(const MapStep& step) {
    if (kFirst >= height_) {
      return;
    }
    int32_t counts[kCounted];
#pragma unroll
    for (int r = 0; r < kCounted; ++r) {
      counts[r] = kMapCountSeed<T>;
    }
    const uint32_t *x = x_words_ + step.first, *y = y_words_ + step.first;
    for (int word = 0; word < step.used; word += 2) {
      const uint32_t high = word + 1 < step.used ? 0xffffffffu : 0u;
      each_row<kFirst, kCounted>(step.stride, [&](int r, int here, int there) {
        const WordPair a = word_pair(x + here + word), b = word_pair(y + there + word);
        counts[r - kFirst] += population(a.low & b.low) + population(a.high & b.high & high);
      });
    }
#pragma unroll
    for (int r = 0; r < kCounted; ++r) {
      map_[kFirst + r] = times(map_[kFirst + r], count_as(counts[r], T()));
    }
  }

  const ConvBatch<T>& batch_;
  const T *x_, *y_;
  const uint32_t *x_words_, *y_words_;
  T* slots_;
  int height_, width_, shift_y_, shift_x_ = 0;
  int lane_, group_, column_;
  int64_t pair_;
  bool live_ = false, spare_;
  T map_[kRows] = {};  // only rows below the height are looked at
};

// Blocks: parts() for each pair. Warps share the displacements of the columns.
template <class T, int kRows>
__device__ __forceinline__ void run_stretch(const ConvBatch<T>& batch, const Stretch& stretch) {
  const int parts = stretch.parts(), warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t pair = blockIdx.x / parts;
  const int part = static_cast<int>(blockIdx.x % parts);
  double sums[kMaxSums] = {};
  MapWarp<T, kRows> maps(batch, stretch, pair, part, lane);
  const int shifts = stretch.at_zero_only ? 1 : stretch.width, step = stretch.maps_per_warp();
  for (int first = warp * step; first < shifts; first += stretch.warps * step) {
    maps.run(stretch, first, shifts, sums);
  }
  auto* of_warps = reinterpret_cast<double*>(conv_shared_memory());
#pragma unroll
  for (int k = 0; k < kMaxSums; ++k) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      sums[k] += shuffled(sums[k], lane ^ distance);
    }
    if (lane == 0) {
      of_warps[warp * kMaxSums + k] = sums[k];
    }
  }
  __syncthreads();
  const int k = static_cast<int>(threadIdx.x);
  if (k < stretch.sums) {
    double total = 0.0;
    for (int w = 0; w < stretch.warps; ++w) {
      total += of_warps[w * kMaxSums + k];
    }
    batch.parts[(pair * stretch.sums + k) * parts + part] = total;
  }
}

}  // namespace gatedops::cuda
