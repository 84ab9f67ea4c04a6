// A box of three columns without a padded row: the sums of columns that neighbouring outputs share stay in registers.
// The same sums in the same order as in box-inl.h. Included by body-inl.h.
#pragma once

#include "box-inl.h"

namespace gatedops::cpu {
namespace {

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

  // The sums over kRows rows of one x at single columns of `in`.
  template <int kRows>
  struct Columns {
    const T* at[kRows > 0 ? kRows : 1];
    int begin, end, wrap;  // wrap: the size where columns outside wrap round, else 0

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
    const int right = 2 - a.x.pad, stride = a.mask.stride;  // the last column under output q is q + right
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
