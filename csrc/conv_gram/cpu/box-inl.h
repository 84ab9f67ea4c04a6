// Boxes, the hot loop of the convolutional recursion, written once over an instruction set's traits I (see body-inl.h).
// avx512.cpp and avx2.cpp have the table of what bounds it.
#pragma once

#include "kernels.h"

namespace gatedops::cpu {
namespace {

// Holds one number for each of kPairs pairs, in as many registers as they take.
template <class I, class T>
struct Wide {
  typedef T Vec __attribute__((vector_size(I::kBytes)));
  static constexpr int kLanes = I::kBytes / static_cast<int>(sizeof(T));
  static constexpr int kVecs = kPairs / kLanes;
  Vec v[kVecs];

  GATEDOPS_INLINE static Wide load(const T* p) {
    Wide w;
    for (int i = 0; i < kVecs; ++i) {
      std::memcpy(&w.v[i], p + i * kLanes, sizeof(Vec));
    }
    return w;
  }
  GATEDOPS_INLINE static Wide zero() {
    Wide w;
    for (int i = 0; i < kVecs; ++i) {
      w.v[i] = Vec{};
    }
    return w;
  }
  GATEDOPS_INLINE void store(T* p) const {
    for (int i = 0; i < kVecs; ++i) {
      std::memcpy(p + i * kLanes, &v[i], sizeof(Vec));
    }
  }
  GATEDOPS_INLINE void add(const Wide& b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] += b.v[i];
    }
  }
  GATEDOPS_INLINE void add(T b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] += b;
    }
  }
  GATEDOPS_INLINE void multiply(const Wide& b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] *= b.v[i];
    }
  }
  GATEDOPS_INLINE void multiply(T b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] *= b;
    }
  }
};

// Returns the overlaps of the masks at one position. A mask has kWords words, or `words` words if kWords is -1.
template <class I, class T, int kWords>
GATEDOPS_INLINE Wide<I, T> overlap(const uint32_t* x, const uint32_t* y, int words) {
  Wide<I, T> w;
  I::convert(I::template overlap<kWords>(x, y, words), w);
  return w;
}

// Says what is done with a box sum before the overlaps.
enum class Scaling { none, factor, affine };

// A box of any window, stride and dilation. The rows under an output row are summed into a padded row; then the columns
// of the padded row are summed.
template <class I, class T>
struct Box {
  using W = Wide<I, T>;

  // The rows of `in` that the window of an output row covers. The pointers are those of the first x.
  struct Rows {
    const T* at[kMaxWindow];
    int count = 0;
  };

  static Rows rows_under(const BoxArgs<T>& a, int p) {
    Rows rows;
    for (int j = 0; j < a.y.kernel; ++j) {
      int q = a.y.stride * p - a.y.pad + a.y.dilation * j;
      if (a.circular) {
        q = modulo(q, a.in.y.size);
      }
      if (q >= a.in.y.begin && q < a.in.y.end) {
        rows.at[rows.count++] = a.in.row(q);
      }
    }
    return rows;
  }

  // Multiplies a box sum by scale, adds offset, and multiplies by the overlap. The loops keep this in a local variable.
  // Otherwise the compiler would have to assume that a store through a pointer to numbers changes it.
  template <int kWords, Scaling kScaling>
  struct Finish {
    T scale, offset;
    int words;

    explicit Finish(const BoxArgs<T>& a) : scale(a.scale), offset(a.offset), words(a.mask.words) {}

    GATEDOPS_INLINE void store(W sum, const uint32_t* mask_x, const uint32_t* mask_y, T* to) const {
      if constexpr (kScaling != Scaling::none) {
        sum.multiply(scale);
      }
      if constexpr (kScaling == Scaling::affine) {
        sum.add(offset);
      }
      if constexpr (kWords != 0) {
        sum.multiply(overlap<I, T, kWords>(mask_x, mask_y, words));
      }
      sum.store(to);
    }
    // Returns how many words the masks of kPairs y have at one position.
    GATEDOPS_INLINE int mask_step() const {
      return (kWords >= 0 ? kWords : words) * kPairs;
    }
  };

  template <int kRows>
  static void sum_rows(const Rows& rows, int64_t from, int64_t numbers, T* to) {
    const int count = kRows > 0 ? kRows : rows.count;
    for (int64_t e = 0; e < numbers; e += kPairs) {
      W sum = W::load(rows.at[0] + from + e);
      for (int j = 1; j < count; ++j) {
        sum.add(W::load(rows.at[j] + from + e));
      }
      sum.store(to + e);
    }
  }

  // Sums the rows of the x of index i into the padded row, for `pixels` pixels from pixel `first` on.
  static void sum_rows(const BoxArgs<T>& a, const Rows& rows, int i, int first, int pixels, T* to) {
    const int64_t from = i * a.in.next + int64_t{first - a.in.x.begin} * kPairs, numbers = int64_t{pixels} * kPairs;
    switch (rows.count) {
      case 0:
        std::fill(to, to + numbers, T(0));
        break;
      case 2:
        sum_rows<2>(rows, from, numbers, to);
        break;
      case 3:
        sum_rows<3>(rows, from, numbers, to);
        break;
      default:
        sum_rows<0>(rows, from, numbers, to);
    }
  }

  // The padded row holds pixels left .. left + length - 1 of `in`. Pixels outside the map are zero or, if the box is
  // circular, have wrapped round.
  struct PaddedRow {
    int left, length;
    int first, last;  // Pixels first .. last - 1 lie inside the map; not used if the box is circular.
  };

  static PaddedRow padded_row(const BoxArgs<T>& a) {
    const int left = a.x.stride * a.out.x.begin - a.x.pad;
    const int length = a.x.stride * (a.out.x.count() - 1) + a.x.dilation * (a.x.kernel - 1) + 1;
    const int first = std::min(std::max(left, a.in.x.begin), left + length);
    const int last = std::max(std::min(left + length, a.in.x.end), first);
    if (!a.circular) {
      std::fill(a.row, a.row + int64_t{first - left} * kPairs, T(0));
      std::fill(a.row + int64_t{last - left} * kPairs, a.row + int64_t{length} * kPairs, T(0));
    }
    return {left, length, first, last};
  }

  static void fill_row(const BoxArgs<T>& a, const PaddedRow& r, const Rows& rows, int i) {
    if (!a.circular) {
      if (r.first < r.last) {
        sum_rows(a, rows, i, r.first, r.last - r.first, a.row + int64_t{r.first - r.left} * kPairs);
      }
      return;
    }
    for (int done = 0; done < r.length;) {
      const int at = modulo(r.left + done, a.in.x.size);
      const int pixels = std::min(a.in.x.size - at, r.length - done);
      sum_rows(a, rows, i, at, pixels, a.row + int64_t{done} * kPairs);
      done += pixels;
    }
  }

  // Sums the columns for `pixels` output pixels, and finishes the sums.
  template <int kTaps, int kWords, Scaling kScaling>
  static void sum_columns(
      const BoxArgs<T>& a, const T* from, const uint32_t* mask_x, const uint32_t* mask_y, int pixels, T* to) {
    const Finish<kWords, kScaling> finish(a);
    const int64_t step = int64_t{a.x.stride} * kPairs, tap = int64_t{a.x.dilation} * kPairs;
    const int taps = kTaps > 0 ? kTaps : a.x.kernel, stride = a.mask.stride;
    for (int i = 0; i < pixels; ++i) {
      W sum = W::load(from);
      for (int j = 1; j < taps; ++j) {
        sum.add(W::load(from + j * tap));
      }
      finish.store(sum, mask_x, mask_y, to);
      from += step;
      to += kPairs;
      mask_x += stride;
      mask_y += finish.mask_step();
    }
  }

  template <int kTaps, int kWords, Scaling kScaling>
  static void box_rows(const BoxArgs<T>& a) {
    const PaddedRow padded = padded_row(a);
    // A window of one pixel inside the map needs no padded row.
    const bool inside = padded.first == padded.left && padded.last == padded.left + padded.length;
    const bool direct = a.x.kernel == 1 && a.y.kernel == 1 && inside;
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      const Rows rows = rows_under(a, p);
      for (int i = 0; i < a.count; ++i) {
        const T* row = a.row;
        if (direct && rows.count == 1) {
          row = rows.at[0] + i * a.in.next + int64_t{padded.left - a.in.x.begin} * kPairs;
        } else {
          fill_row(a, padded, rows, i);
        }
        finish_row<kTaps, kWords, kScaling>(a, row, p, i);
      }
    }
  }

  // Computes output row p of the x of index i from its padded row, in two parts if the pixels of y wrap round.
  template <int kTaps, int kWords, Scaling kScaling>
  GATEDOPS_INLINE static void finish_row(const BoxArgs<T>& a, const T* row, int p, int i) {
    const Axis& x = a.out.x;
    const int64_t at_x = int64_t{p} * a.width, at_y = int64_t{a.out.y.partner(p)} * a.width;
    T* to = a.out.row(p) + i * a.out.next;
    for (int begin = x.begin; begin < x.end;) {
      const int end = begin < x.split ? x.split : x.end;
      sum_columns<kTaps, kWords, kScaling>(
          a, row + int64_t{begin - x.begin} * a.x.stride * kPairs,
          a.mask.x + i * a.mask.next + (at_x + begin) * a.mask.stride,
          a.mask.y + (at_y + x.partner(begin)) * a.mask.words * kPairs, end - begin,
          to + int64_t{begin - x.begin} * kPairs);
      begin = end;
    }
  }
};

// A box of three neighbouring columns needs no padded row. The sums of columns, which neighbouring outputs share, stay
// in registers. They are the same sums in the same order as in Box.
template <class I, class T>
struct RolledBox {
  using W = Wide<I, T>;
  using Rows = typename Box<I, T>::Rows;
  template <int kWords, Scaling kScaling>
  using Finish = typename Box<I, T>::template Finish<kWords, kScaling>;

  static bool rolls(const BoxArgs<T>& a) {
    return a.x.kernel == 3 && a.x.stride == 1 && a.x.dilation == 1 && a.y.kernel <= 3 && a.in.x.count() > 0;
  }

  template <int kWords, Scaling kScaling>
  static void rolled_rows(const BoxArgs<T>& a) {
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      const Rows rows = Box<I, T>::rows_under(a, p);
      for (int i = 0; i < a.count; ++i) {
        switch (rows.count) {
          case 0:
            rolled_row<0, kWords, kScaling>(a, rows, p, i);
            break;
          case 1:
            rolled_row<1, kWords, kScaling>(a, rows, p, i);
            break;
          case 2:
            rolled_row<2, kWords, kScaling>(a, rows, p, i);
            break;
          default:
            rolled_row<3, kWords, kScaling>(a, rows, p, i);
        }
      }
    }
  }

  // Sums kRows rows of one x at single columns of `in`.
  template <int kRows>
  struct Columns {
    const T* at[kRows > 0 ? kRows : 1];
    // `wrap` is the size if columns outside wrap round, else 0.
    int begin, end, wrap;

    Columns(const BoxArgs<T>& a, const Rows& rows, int i)
        : begin(a.in.x.begin), end(kRows > 0 ? a.in.x.end : begin), wrap(a.circular ? a.in.x.size : 0) {
      for (int j = 0; j < kRows; ++j) {
        at[j] = rows.at[j] + i * a.in.next;
      }
    }
    GATEDOPS_INLINE W inner(int q) const {
      const int64_t from = int64_t{q - begin} * kPairs;
      W sum = W::load(at[0] + from);
      for (int j = 1; j < kRows; ++j) {
        sum.add(W::load(at[j] + from));
      }
      return sum;
    }
    GATEDOPS_INLINE W any(int q) const {
      q = wrap > 0 ? modulo(q, wrap) : q;
      return q >= begin && q < end ? inner(q) : W::zero();
    }
  };

  template <int kRows, int kWords, Scaling kScaling>
  static void rolled_row(const BoxArgs<T>& a, const Rows& rows, int p, int i) {
    const Finish<kWords, kScaling> finish(a);
    const Columns<kRows> columns(a, rows, i);
    const Axis x = a.out.x;
    const int64_t at_x = int64_t{p} * a.width, at_y = int64_t{a.out.y.partner(p)} * a.width;
    const int right = 2 - a.x.pad, stride = a.mask.stride;  // The last column under output q is q + right.
    const int inner_end = x.begin + right < columns.begin ? x.begin : std::min(x.end, columns.end - right);
    T* to = a.out.row(p) + i * a.out.next;
    W before = columns.any(x.begin - a.x.pad), here = columns.any(x.begin - a.x.pad + 1);
    for (int q = x.begin; q < x.end;) {
      const int end = q < x.split ? x.split : x.end;
      const uint32_t* mask_x = a.mask.x + i * a.mask.next + (at_x + q) * stride;
      const uint32_t* mask_y = a.mask.y + (at_y + x.partner(q)) * finish.mask_step();
      for (; q < end; ++q) {
        const W after = q < inner_end ? columns.inner(q + right) : columns.any(q + right);
        before.add(here);
        before.add(after);
        finish.store(before, mask_x, mask_y, to);
        before = here;
        here = after;
        to += kPairs;
        mask_x += stride;
        mask_y += finish.mask_step();
      }
    }
  }
};

}  // namespace
}  // namespace gatedops::cpu
