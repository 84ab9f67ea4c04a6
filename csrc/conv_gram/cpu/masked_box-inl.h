// Boxes with a mask for each output pixel and offset, written once over an instruction set's traits I (see body-inl.h).
// avx512.cpp and avx2.cpp have the table of what bounds the loop.
#pragma once

#include "box-inl.h"

namespace gatedops::cpu {
namespace {

// The terms of an output pixel are added up row by row of the window. Each output pixel is computed for all x before
// the next one, because all x share its masks of y.
template <class I, class T>
struct MaskedBox {
  using W = Wide<I, T>;

  // A term reads the numbers of a pixel of `in`, the mask of one x, and the masks of kPairs y.
  struct Place {
    const T* in;
    const uint32_t *x, *y;
  };

  // Says how far the place of one term lies behind that of another.
  struct Distance {
    int64_t in, x, y;
  };

  GATEDOPS_INLINE static Place moved(const Place& from, const Distance& by) {
    return {from.in + by.in, from.x + by.x, from.y + by.y};
  }

  // Describes neighbouring offsets of a window along one axis, whose terms lie at equal distances.
  struct Run {
    // This is the distance from the place of pixel (y.begin, x.begin) and the first mask to that of the first offset.
    Distance first;
    int count;
  };

  // Lists the offsets along one axis that read pixels of the map.
  struct Runs {
    Run run[kMaxWindow];
    int count = 0;

    const Run* begin() const {
      return run;
    }
    const Run* end() const {
      return run + count;
    }
  };

  // Lists the rows of `in` under output row p. Each row is a run of its own.
  static Runs rows_under(const BoxArgs<T>& a, int p) {
    Runs rows;
    for (int j = 0; j < a.y.kernel; ++j) {
      const int q = source(a, a.y, a.in.y, p, j);
      if (q >= a.in.y.begin && q < a.in.y.end) {
        rows.run[rows.count++] = {distance(a, (q - a.in.y.begin) * a.in.pitch, j * a.x.kernel), 1};
      }
    }
    return rows;
  }

  // Lists the columns of `in` under output column p. They are one run unless they wrap round.
  static Runs columns_under(const BoxArgs<T>& a, int p) {
    Runs columns;
    int next = -1;
    for (int j = 0; j < a.x.kernel; ++j) {
      const int q = source(a, a.x, a.in.x, p, j);
      if (q < a.in.x.begin || q >= a.in.x.end) {
        continue;
      }
      if (q == next) {
        ++columns.run[columns.count - 1].count;
      } else {
        columns.run[columns.count++] = {distance(a, int64_t{q - a.in.x.begin} * kPairs, j), 1};
      }
      next = q + a.x.dilation;
    }
    return columns;
  }

  // Returns the pixel that offset j in the window of output pixel p reads, along one axis.
  static int source(const BoxArgs<T>& a, const BoxAxis& window, const Axis& in, int p, int j) {
    const int q = window.stride * p - window.pad + window.dilation * j;
    return a.circular ? modulo(q, in.size) : q;
  }

  // Returns the distance to the masks of an offset in the window. `numbers` is that in `in`.
  static Distance distance(const BoxArgs<T>& a, int64_t numbers, int64_t offset) {
    return {numbers, offset * a.mask.stride, offset * a.mask.words * kPairs};
  }

  // Adds the terms of one run, which has kCount offsets, or `count` if kCount is 0.
  template <int kWords, int kCount>
  GATEDOPS_INLINE static void add_run(W& sum, const Place& first, const Distance& step, int words, int count) {
    Place at = first;
    for (int k = 0; k < (kCount > 0 ? kCount : count); ++k) {
      W term = W::load(at.in);
      term.multiply(overlap<I, T, kWords>(at.x, at.y, words));
      sum.add(term);
      at = moved(at, step);
    }
  }

  // Computes one output pixel of all x. If kCount is not 0, its columns are one run of kCount offsets. The loops of the
  // caller would take registers that these loops need, so the compiler may not inline this function.
  template <int kWords, int kCount>
  __attribute__((noinline)) static void pixel(
      const BoxArgs<T>& a, const Runs& rows, const Runs& columns, Place origin, T* to) {
    const int words = kWords > 0 ? kWords : a.mask.words;
    const Distance step = distance(a, int64_t{a.x.dilation} * kPairs, 1);
    const Distance next{a.in.next, a.mask.next, 0};
    for (int i = 0; i < a.count; ++i) {
      W sum = W::zero();
      for (const Run& row : rows) {
        const Place left = moved(origin, row.first);
        if constexpr (kCount > 0) {
          add_run<kWords, kCount>(sum, moved(left, columns.run[0].first), step, words, kCount);
        } else {
          for (const Run& run : columns) {
            add_run<kWords, 0>(sum, moved(left, run.first), step, words, run.count);
          }
        }
      }
      sum.multiply(a.scale);
      sum.store(to + i * a.out.next);
      origin = moved(origin, next);
    }
  }

  template <int kWords>
  static void box(const BoxArgs<T>& a) {
    const int64_t area = int64_t{a.y.kernel} * a.x.kernel;
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      const Runs rows = rows_under(a, p);
      const int64_t at_x = int64_t{p} * a.width, at_y = int64_t{a.out.y.partner(p)} * a.width;
      for (int q = a.out.x.begin; q < a.out.x.end; ++q) {
        const Runs columns = columns_under(a, q);
        const Place origin{
            a.in.data, a.mask.x + (at_x + q) * area * a.mask.stride,
            a.mask.y + (at_y + a.out.x.partner(q)) * area * a.mask.words * kPairs};
        T* to = a.out.row(p) + int64_t{q - a.out.x.begin} * kPairs;
        if (columns.count == 1 && columns.run[0].count == 3) {
          pixel<kWords, 3>(a, rows, columns, origin, to);
        } else {
          pixel<kWords, 0>(a, rows, columns, origin, to);
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
