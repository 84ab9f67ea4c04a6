// Boxes with a mask for each output pixel and offset, written once over an instruction set's traits I (see body-inl.h).
// avx512.cpp and avx2.cpp have the table of what bounds the loop.
#pragma once

#include "box-inl.h"

namespace gatedops::cpu {
namespace {

// The terms of an output pixel are summed row by row of the window. Each output pixel is computed for all x before the
// next one, because all x share its masks of y.
template <class I, class T>
struct MaskedBox {
  using W = Wide<I, T>;

  // The rows of `in` that the window of an output row covers. The pointers are those of the first x.
  struct Rows {
    const T* at[kMaxWindow];
    // The place of the row in the window.
    int place[kMaxWindow];
    int count = 0;
  };

  // Offsets place, place + 1, ... of the window read columns at, at + dilation, ... of `in`.
  struct Run {
    int place, at, count;
  };

  // All columns of `in` that the window of an output column covers. There are several runs if columns wrap round.
  struct Columns {
    Run run[kMaxWindow];
    int count = 0;
  };

  static Rows rows_under(const BoxArgs<T>& a, int p) {
    Rows rows;
    for (int j = 0; j < a.y.kernel; ++j) {
      int q = a.y.stride * p - a.y.pad + a.y.dilation * j;
      q = a.circular ? modulo(q, a.in.y.size) : q;
      if (q >= a.in.y.begin && q < a.in.y.end) {
        rows.at[rows.count] = a.in.row(q);
        rows.place[rows.count++] = j;
      }
    }
    return rows;
  }

  static Columns columns_under(const BoxArgs<T>& a, int p) {
    Columns columns;
    const int first = a.x.stride * p - a.x.pad;
    if (first >= a.in.x.begin && first + a.x.dilation * (a.x.kernel - 1) < a.in.x.end) {
      columns.run[columns.count++] = {0, first, a.x.kernel};
      return columns;
    }
    for (int j = 0; j < a.x.kernel; ++j) {
      int q = first + a.x.dilation * j;
      q = a.circular ? modulo(q, a.in.x.size) : q;
      if (q >= a.in.x.begin && q < a.in.x.end) {
        append(columns, j, q, a.x.dilation);
      }
    }
    return columns;
  }

  static void append(Columns& columns, int place, int at, int dilation) {
    if (columns.count > 0) {
      Run& last = columns.run[columns.count - 1];
      if (place == last.place + last.count && at == last.at + last.count * dilation) {
        ++last.count;
        return;
      }
    }
    columns.run[columns.count++] = {place, at, 1};
  }

  // The masks of one output pixel: those of one x, and those of kPairs y. Offset u has its words at x + u * stride.
  struct Masks {
    const uint32_t *x, *y;
    int stride, words;
  };

  // Adds the terms of neighbouring offsets, from offset u of the window on.
  template <int kWords>
  GATEDOPS_INLINE static void add_run(W& sum, const T* pixel, int64_t step, const Masks& masks, int u, int count) {
    const int words = kWords > 0 ? kWords : masks.words;
    const uint32_t* x = masks.x + int64_t{u} * masks.stride;
    const uint32_t* y = masks.y + int64_t{u} * words * kPairs;
    for (int k = 0; k < count; ++k) {
      W term = W::load(pixel);
      term.multiply(overlap<I, T, kWords>(x, y, words));
      sum.add(term);
      pixel += step;
      x += masks.stride;
      y += words * kPairs;
    }
  }

  // Computes one output pixel of the x of index i.
  template <int kWords>
  GATEDOPS_INLINE static W pixel(
      const BoxArgs<T>& a, const Rows& rows, const Columns& columns, int i, const Masks& masks) {
    const int64_t step = int64_t{a.x.dilation} * kPairs;
    W sum = W::zero();
    for (int j = 0; j < rows.count; ++j) {
      const T* row = rows.at[j] + i * a.in.next;
      for (const Run* run = columns.run; run != columns.run + columns.count; ++run) {
        add_run<kWords>(
            sum, row + int64_t{run->at - a.in.x.begin} * kPairs, step, masks, rows.place[j] * a.x.kernel + run->place,
            run->count);
      }
    }
    sum.multiply(a.scale);
    return sum;
  }

  template <int kWords>
  static void box(const BoxArgs<T>& a) {
    const int64_t area = int64_t{a.y.kernel} * a.x.kernel;
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      const Rows rows = rows_under(a, p);
      const int64_t at_x = int64_t{p} * a.width, at_y = int64_t{a.out.y.partner(p)} * a.width;
      for (int q = a.out.x.begin; q < a.out.x.end; ++q) {
        const Columns columns = columns_under(a, q);
        Masks masks{
            a.mask.x + (at_x + q) * area * a.mask.stride,
            a.mask.y + (at_y + a.out.x.partner(q)) * area * a.mask.words * kPairs, a.mask.stride, a.mask.words};
        T* to = a.out.row(p) + int64_t{q - a.out.x.begin} * kPairs;
        for (int i = 0; i < a.count; ++i) {
          pixel<kWords>(a, rows, columns, i, masks).store(to);
          masks.x += a.mask.next;
          to += a.out.next;
        }
      }
    }
  }

  static void masked_box(const BoxArgs<T>& a) {
    switch (a.mask.words) {
      case 1:
        return box<1>(a);
      case 2:
        return box<2>(a);
      default:
        return box<-1>(a);
    }
  }
};

}  // namespace
}  // namespace gatedops::cpu
