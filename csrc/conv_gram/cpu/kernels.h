// The convolutional recursion at one displacement: the interface between the executor (tile.h) and the kernels of each
// instruction set.
//
// A kernel K(p, p') of one input x and kPairs inputs y, restricted to the pixels p' = p + delta, is a map over p with
// kPairs numbers at every pixel. A convolution moves p and p' by the same offset, so that between pools maps of
// different delta do not mix. All layers of a map therefore stay in the L1 or L2 cache.
#pragma once

#include <cstdint>

#include "conv_gram/program.h"
#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"

namespace gatedops::cpu {

constexpr int kPairs = 16;  // This many y are paired with one x, side by side.

inline int modulo(int a, int n) {
  const int r = a % n;
  return r < 0 ? r + n : r;
}

// One axis of a map. It has the pixels begin .. end - 1 of x. From pixel `split` on, the pixel of y has wrapped round.
struct Axis {
  int begin = 0, split = 0, end = 0;
  int delta = 0, size = 0;

  int count() const {
    return end - begin;
  }
  int partner(int p) const {
    return p + delta - (p < split ? 0 : size);
  }
};

// Describes the maps of several x, all at one displacement.
template <class T>
struct Maps {
  // Points to pixel (y.begin, x.begin) of the first x.
  T* data = nullptr;
  // The pitch counts numbers from one row of pixels to the next; `next` counts them from one x to the next.
  int64_t pitch = 0;
  int64_t next = 0;
  Axis y, x;

  T* row(int p) const {
    return data + (p - y.begin) * pitch;
  }
};

// The mask bits of one layer. Position k of the first x has its words at x + k * stride; those of the next x are `next`
// words further on. Position k of the kPairs y has its words at y + k * words * kPairs, laid out [word][y]. If words is
// 0, there is no mask.
struct MaskView {
  const uint32_t* x = nullptr;
  const uint32_t* y = nullptr;
  int64_t next = 0;
  int stride = 0, words = 0;
};

// out = s * sum_c x[c, p] y[c, p']. x is laid out (channels, pixels), and the next x is `next` numbers further on. y is
// laid out (pixels, channels, kPairs).
template <class T>
struct InputArgs {
  // Here and below, `count` is the number of x.
  int count;
  const T* x;
  const T* y;
  int64_t next, channels, pixels;
  int width;
  T scale;
  Maps<T> out;
};

struct BoxAxis {
  int kernel, stride, pad, dilation;
};

// out = (scale * box(in) + offset) * overlap of the masks at p and p'. The rows of the window are summed first, then
// its columns, both in increasing order. `row` is scratch memory for one padded row of `in`.
//
// A masked box has out(p) = scale * sum_u in(f(p, u)) * overlap of the masks m_u at p and p'. The offsets u of the
// window are summed row by row. A masked box uses neither `offset` nor `row`, and its masks have a position for each p
// and u.
template <class T>
struct BoxArgs {
  int count;
  Maps<T> in, out;
  BoxAxis y, x;
  bool circular;
  MaskView mask;
  // A row of the mask has this many pixels.
  int width;
  T scale, offset;
  T* row;
};

// out = scale_a * a + scale_b * b + offset. If b.data is nullptr, there is no b.
template <class T>
struct AddArgs {
  int count;
  Maps<T> a, b, out;
  T scale_a, scale_b, offset;
};

// One way in which a pixel of a map falls into a window, along one axis. Pixel `in` of x has place `mask` in the window
// of output pixel `out`. Its partner has place `mask_y` in the window of output pixel `partner`, which lies `shift`
// further on (modulo the size).
struct PoolTap {
  int in, out, shift, partner, mask, mask_y;
  // This is the product of the weights of both pixels in a resampling.
  double weight;
};

// store[shift][out] += in * overlap of the masks at the places of both pixels in their windows, for all taps of both
// axes.
template <class T>
struct PoolArgs {
  int count;
  Maps<T> in;
  const PoolTap *y, *x;
  int y_count, x_count;
  int out_height, out_width;
  int kernel_width, kernel_area;
  MaskView mask;
  T* store;
  // This many numbers lie from one x to the next.
  int64_t store_next;
};

template <class T>
struct ConvGramKernels {
  void (*input)(const InputArgs<T>&);
  void (*box)(const BoxArgs<T>&);
  void (*masked_box)(const BoxArgs<T>&);
  void (*add)(const AddArgs<T>&);
  void (*pool)(const PoolArgs<T>&);
  // Multiplies each `in` by the weights of its taps too. It has no masks.
  void (*resample)(const PoolArgs<T>&);
  void (*total)(int count, const Maps<T>& in, double* sums);  // Adds all pixels to sums[x][pair].
};

struct ConvKernels {
  ConvGramKernels<float> f32;
  ConvGramKernels<double> f64;

  template <class T>
  const ConvGramKernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return f32;
    } else {
      return f64;
    }
  }
};

}  // namespace gatedops::cpu
