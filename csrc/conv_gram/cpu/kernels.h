// The convolutional recursion at one displacement: the interface between the executor (tile.h) and the
// kernels of each instruction set.
//
// A kernel K(p, p') of one input x and kPairs inputs y, restricted to the pixels p' = p + delta, is a map over p with
// kPairs numbers at every pixel. A convolution moves p and p' by the same offset, so maps of different delta never
// meet between pools: all layers of a map stay in the L1 or L2 cache.
#pragma once

#include <cstdint>

#include "conv_gram/program.h"
#include "core/cpu/dispatch.h"
#include "core/cpu/inline.h"

namespace gatedops::cpu {

constexpr int kPairs = 16;  // pairs side by side: one x against kPairs y

inline int modulo(int a, int n) {
  const int r = a % n;
  return r < 0 ? r + n : r;
}

// One axis of a map: the pixels begin .. end - 1 of x; from `split` on the pixel of y has wrapped round.
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

// Maps of several x, all at one displacement.
template <class T>
struct Maps {
  T* data = nullptr;  // pixel (y.begin, x.begin) of the first x
  int64_t pitch = 0;  // numbers between rows of pixels
  int64_t next = 0;   // numbers between one x and the next
  Axis y, x;

  T* row(int p) const {
    return data + (p - y.begin) * pitch;
  }
};

// Mask bits of one layer. Position k of the first x: words at x + k * stride, those of the next x `next` words further
// on; of the kPairs y: at y + k * words * kPairs, laid out [word][y]. words == 0: no mask.
struct MaskView {
  const uint32_t* x = nullptr;
  const uint32_t* y = nullptr;
  int64_t next = 0;
  int stride = 0, words = 0;
};

// out = s * sum_c x[c, p] y[c, p'], x laid out (channels, pixels) and the
// next x `next` numbers further on, y (pixels, channels, kPairs).
template <class T>
struct InputArgs {
  int count;  // of x, here and below
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

// out = (scale * box(in) + offset) * overlap of the masks at p and p'. Rows of the window are summed first, then its
// columns, both in increasing order. `row` is scratch for one padded row of `in`.
template <class T>
struct BoxArgs {
  int count;
  Maps<T> in, out;
  BoxAxis y, x;
  bool circular;
  MaskView mask;
  int width;  // pixels in a row of the mask
  T scale, offset;
  T* row;
};

// out = a * in_a + b * in_b + offset; in_b.data == nullptr: without it.
template <class T>
struct AddArgs {
  int count;
  Maps<T> a, b, out;
  T scale_a, scale_b, offset;
};

// One way in which a pixel of a map falls into a window, along one axis: pixel `in` of x is `mask` in the window of
// `out`, its partner is `mask_y` in the window of a pixel `shift` further on (modulo the size).
struct PoolTap {
  int in, out, shift, partner, mask, mask_y;
};

// store[shift][out] += in * overlap of the masks m_u(p) and m'_v(p'), over all taps of both axes.
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
  int64_t store_next;  // numbers between one x and the next
};

template <class T>
struct ConvGramKernels {
  void (*input)(const InputArgs<T>&);
  void (*box)(const BoxArgs<T>&);
  void (*add)(const AddArgs<T>&);
  void (*pool)(const PoolArgs<T>&);
  void (*total)(int count, const Maps<T>& in, double* sums);  // sums[x][pair] += all pixels
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
