// conv_gram's other kernels. They take instructions that mix displacements, change the size, or have images too large
// for maps in registers, one at a time on registers in memory. They also compute totals and write the Gram.
//
// Device memory bounds them: each instruction writes its register once, and reads its sources from memory or a cache.
// With float32 an add moves 8 to 12 bytes for each number; a pool reads kernel^2 numbers for one. Rates are not
// measured here.
#pragma once

#include "device.h"
#include "steps.h"

namespace gatedops::cuda {

// Computes the numbers of a register of one pair, one at a time.
template <class T>
class EntryThread {
 public:
  __device__ __forceinline__ EntryThread(const ConvBatch<T>& batch, const EntryStep& step, int64_t pair)
      : batch_(batch), step_(step), store_(batch.store + pair * batch.numbers) {
    const RowPair rows = pair_at(batch.pairs, pair);
    x_ = batch.left.x + rows.i * batch.left.columns + step.first;
    y_ = batch.right.x + rows.j * batch.right.columns + step.first;
    x_words_ = batch.left.words + rows.i * batch.left.words_stride + step.first;
    y_words_ = batch.right.words + rows.j * batch.right.words_stride + step.first;
  }

  __device__ __forceinline__ void write(int64_t number) {
    const int area = step_.out_y * step_.out_x;
    const int shift = static_cast<int>(number / area), pixel = static_cast<int>(number % area);
    const int shift_y = shift / step_.out_x, shift_x = shift % step_.out_x;
    p_y_ = pixel / step_.out_x;
    p_x_ = pixel % step_.out_x;
    q_y_ = wrapped(p_y_ + shift_y, step_.out_y);
    q_x_ = wrapped(p_x_ + shift_x, step_.out_x);
    store_[step_.out + number] = value(number, shift_y, shift_x);
  }

 private:
  __device__ __forceinline__ static int wrapped(int at, int size) {
    return at < size ? at : at - size;
  }

  __device__ __forceinline__ T value(int64_t number, int shift_y, int shift_x) {
    const auto scale = static_cast<T>(step_.scale), offset = static_cast<T>(step_.constant);
    switch (step_.op) {
      case EntryOp::input:
        return times(inner_product(), scale);
      case EntryOp::constant: {
        const bool on = !(step_.has(kSameRow) && shift_y != 0) && !(step_.has(kSameColumn) && shift_x != 0);
        return on ? scale : T(0);
      }
      case EntryOp::box: {
        const T sum = plus(times(box(), scale), offset);
        return step_.used > 0 ? times(sum, overlap(p_y_ * step_.out_x + p_x_, q_y_ * step_.out_x + q_x_)) : sum;
      }
      case EntryOp::add: {
        const T first = times(store_[step_.src + number], scale);
        const bool second = step_.src2 >= 0;
        const T both = second ? plus(first, times(store_[step_.src2 + number], static_cast<T>(step_.scale2))) : first;
        return plus(both, offset);
      }
      case EntryOp::pool:
      case EntryOp::select:
        return times(over_windows(), static_cast<T>(step_.scale * weight(p_y_, p_x_) * weight(q_y_, q_x_)));
    }
    return T(0);
  }

  __device__ __forceinline__ T inner_product() const {
    const int area = step_.out_y * step_.out_x;
    const T *x = x_ + p_y_ * step_.out_x + p_x_, *y = y_ + q_y_ * step_.out_x + q_x_;
    T total = times(*x, *y);
    for (int64_t c = 1; c < step_.channels; ++c) {
      total = plus(total, times(x[c * area], y[c * area]));
    }
    return total;
  }

  // Returns R(u, v) of the source.
  __device__ __forceinline__ T source(int u_y, int u_x, int v_y, int v_x) const {
    const int shift_y = v_y - u_y, shift_x = v_x - u_x;
    const int64_t row = shift_y < 0 ? shift_y + step_.in_y : shift_y;
    const int64_t shift = row * step_.in_x + (shift_x < 0 ? shift_x + step_.in_x : shift_x);
    return store_[step_.src + (shift * step_.in_y + u_y) * step_.in_x + u_x];
  }

  // Returns the input pixel at an offset of a window along one axis, or a negative number if it is outside the image.
  __device__ __forceinline__ int at_window(int out, int offset, int stride, int dilation, int pad, int size) const {
    int at = out * stride + offset * dilation - pad;
    if (step_.has(kCircular)) {
      at %= size;
      return at < 0 ? at + size : at;
    }
    return at < size ? at : -1;
  }
  __device__ __forceinline__ int row_at(int out, int offset) const {
    return at_window(out, offset, step_.stride_y, step_.dilation_y, step_.pad_y, step_.in_y);
  }
  __device__ __forceinline__ int column_at(int out, int offset) const {
    return at_window(out, offset, step_.stride_x, step_.dilation_x, step_.pad_x, step_.in_x);
  }

  // Sums the rows of the window first, then its columns, as the kernel for maps in registers and the CPU do.
  __device__ __forceinline__ T box() const {
    T total = T(0);
    for (int j = 0; j < step_.kernel_x; ++j) {
      const int u_x = column_at(p_x_, j), v_x = column_at(q_x_, j);
      T column = T(0);
      for (int i = 0; i < step_.kernel_y; ++i) {
        const int u_y = row_at(p_y_, i), v_y = row_at(q_y_, i);
        if (u_y >= 0 && v_y >= 0 && u_x >= 0 && v_x >= 0) {
          column = plus(column, source(u_y, u_x, v_y, v_x));
        }
      }
      total = plus(total, column);
    }
    return total;
  }

  // Sums over both windows, because both pixels move independently. A select multiplies each term by the overlap of the
  // masks at both places in the windows.
  __device__ __forceinline__ T over_windows() const {
    const int area = step_.kernel_y * step_.kernel_x;
    T total = T(0);
    for (int u = 0; u < area; ++u) {
      const int u_y = row_at(p_y_, u / step_.kernel_x), u_x = column_at(p_x_, u % step_.kernel_x);
      if (u_y < 0 || u_x < 0) {
        continue;
      }
      for (int v = 0; v < area; ++v) {
        const int v_y = row_at(q_y_, v / step_.kernel_x), v_x = column_at(q_x_, v % step_.kernel_x);
        if (v_y < 0 || v_x < 0) {
          continue;
        }
        const T here = source(u_y, u_x, v_y, v_x);
        const int at = (p_y_ * step_.out_x + p_x_) * area + u, at_y = (q_y_ * step_.out_x + q_x_) * area + v;
        total = plus(total, step_.op == EntryOp::select ? times(here, overlap(at, at_y)) : here);
      }
    }
    return total;
  }

  __device__ __forceinline__ T overlap(int64_t position, int64_t y_position) const {
    const uint32_t *x = x_words_ + position * step_.stride, *y = y_words_ + y_position * step_.stride;
    int count = 0;
    for (int word = 0; word < step_.used; ++word) {
      count += population(x[word] & y[word]);
    }
    return static_cast<T>(count);
  }

  __device__ __forceinline__ double weight(int y, int x) const {
    return step_.weights < 0 ? 1.0 : batch_.weights[step_.weights + y * step_.out_x + x];
  }

  const ConvBatch<T>& batch_;
  const EntryStep& step_;
  T* store_;
  const T *x_, *y_;
  const uint32_t *x_words_, *y_words_;
  int p_y_ = 0, p_x_ = 0, q_y_ = 0, q_x_ = 0;
};

template <class T>
__device__ __forceinline__ void run_entries(const ConvBatch<T>& batch, const EntryStep& step) {
  const int64_t area = int64_t{step.out_y} * step.out_x, numbers = area * area;
  const int64_t stride = int64_t{gridDim.x} * kEntryThreads;
  for (int64_t t = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x; t < batch.pairs.count * numbers; t += stride) {
    EntryThread<T>(batch, step, t / numbers).write(t % numbers);
  }
}

// Each pair has step.parts blocks.
template <class T>
__device__ __forceinline__ void run_total(const ConvBatch<T>& batch, const TotalStep& step) {
  const int64_t pair = blockIdx.x / step.parts;
  const auto part = static_cast<int64_t>(blockIdx.x % step.parts);
  const T* from = batch.store + pair * batch.numbers + step.src;
  double total = 0.0;
  for (int64_t k = part * kEntryThreads + threadIdx.x; k < step.numbers; k += int64_t{step.parts} * kEntryThreads) {
    total += static_cast<double>(from[k]);
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total += shuffled(total, lane ^ distance);
  }
  auto* of_warps = reinterpret_cast<double*>(conv_shared_memory());
  if (lane == 0) {
    of_warps[threadIdx.x / kWarp] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0.0;
    for (int w = 0; w < kEntryThreads / kWarp; ++w) {
      total += of_warps[w];
    }
    batch.parts[pair * step.parts + part] = total;
  }
}

template <class T>
__device__ __forceinline__ void run_close(const ConvBatch<T>& batch, const CloseStep& step) {
  const int64_t stride = int64_t{gridDim.x} * kEntryThreads;
  for (int64_t pair = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x; pair < batch.pairs.count; pair += stride) {
    const double* parts = batch.parts + (pair * step.sums + step.sum) * step.parts;
    double total = 0.0;
    for (int part = 0; part < step.parts; ++part) {
      total += parts[part];
    }
    batch.store[pair * batch.numbers + step.out] = static_cast<T>(total * step.scale);
  }
}

// Writes the register at `place`, which has one number, into the Gram. If the Gram is symmetric, it writes both halves.
template <class T>
__device__ __forceinline__ void run_write(const ConvBatch<T>& batch, int64_t place) {
  const int64_t stride = int64_t{gridDim.x} * kEntryThreads;
  for (int64_t pair = int64_t{blockIdx.x} * kEntryThreads + threadIdx.x; pair < batch.pairs.count; pair += stride) {
    const RowPair at = pair_at(batch.pairs, pair);
    const T value = batch.store[pair * batch.numbers + place];
    batch.out[int64_t{at.i} * batch.pairs.m + at.j] = value;
    if (batch.pairs.symmetric) {
      batch.out[int64_t{at.j} * batch.pairs.m + at.i] = value;
    }
  }
}

__device__ __forceinline__ void run_numbers(const Numbers& numbers) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i < numbers.count) {
    numbers.to[i] = numbers.values[i];
  }
}

}  // namespace gatedops::cuda
