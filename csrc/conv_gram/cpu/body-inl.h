// Kernels of the convolutional recursion, written once over an instruction set's traits I; gram/cpu/tile-inl.h says how
// such a body is compiled. box-inl.h has the loops of boxes, this file those of all other kernels. Every number of a
// map belongs to one pair, and the order of sums does not depend on the width of a register. So the bits are the same
// on every instruction set.
//
// I::kBytes is the width of a register. I::Counts holds the int32 overlaps of kPairs pairs. I::overlap adds up the
// overlaps of some words, and I::convert turns them into numbers.

#include "box-inl.h"
#include "masked_box-inl.h"

namespace gatedops::cpu {
namespace {

template <class I, class T>
struct ConvGram {
  using W = Wide<I, T>;

  static void input(const InputArgs<T>& a) {
    const Axis& ax = a.out.x;
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      const int row = p * a.width, y_row = a.out.y.partner(p) * a.width;
      for (int i = 0; i < a.count; ++i) {
        T* to = a.out.row(p) + i * a.out.next;
        for (int q = ax.begin; q < ax.end; ++q, to += kPairs) {
          W sum = inner_product(a, a.x + i * a.next + row + q, a.y + (y_row + ax.partner(q)) * a.channels * kPairs);
          sum.multiply(a.scale);
          sum.store(to);
        }
      }
    }
  }

  GATEDOPS_INLINE static W inner_product(const InputArgs<T>& a, const T* x, const T* y) {
    W sum = W::load(y);
    sum.multiply(x[0]);
    for (int64_t c = 1; c < a.channels; ++c) {
      W term = W::load(y + c * kPairs);
      term.multiply(x[c * a.pixels]);
      sum.add(term);
    }
    return sum;
  }

  template <int kTaps, int kWords, Scaling kScaling>
  static void box_as(const BoxArgs<T>& a) {
    if constexpr (kTaps == 3) {
      if (RolledBox<I, T>::rolls(a)) {
        return RolledBox<I, T>::template rolled_rows<kWords, kScaling>(a);
      }
    }
    Box<I, T>::template box_rows<kTaps, kWords, kScaling>(a);
  }

  template <int kTaps, int kWords>
  static void box_scaled(const BoxArgs<T>& a) {
    if (a.offset != T(0)) {
      box_as<kTaps, kWords, Scaling::affine>(a);
    } else if (a.scale != T(1)) {
      box_as<kTaps, kWords, Scaling::factor>(a);
    } else {
      box_as<kTaps, kWords, Scaling::none>(a);
    }
  }

  template <int kTaps>
  static void box_masked(const BoxArgs<T>& a) {
    switch (a.mask.words) {
      case 0:
        return box_scaled<kTaps, 0>(a);
      case 1:
        return box_scaled<kTaps, 1>(a);
      case 2:
        return box_scaled<kTaps, 2>(a);
      default:
        return box_scaled<kTaps, -1>(a);
    }
  }

  static void box(const BoxArgs<T>& a) {
    if (a.x.kernel == 1) {
      box_masked<1>(a);
    } else if (a.x.kernel == 3) {
      box_masked<3>(a);
    } else {
      box_masked<0>(a);
    }
  }

  static void add(const AddArgs<T>& a) {
    const int64_t numbers = int64_t{a.out.x.count()} * kPairs;
    for (int p = a.out.y.begin; p < a.out.y.end; ++p) {
      for (int i = 0; i < a.count; ++i) {
        const T* second = a.b.data == nullptr ? nullptr : a.b.row(p) + i * a.b.next;
        add_row(a, a.a.row(p) + i * a.a.next, second, numbers, a.out.row(p) + i * a.out.next);
      }
    }
  }

  static void add_row(const AddArgs<T>& a, const T* first, const T* second, int64_t numbers, T* to) {
    for (int64_t e = 0; e < numbers; e += kPairs) {
      W sum = W::load(first + e);
      sum.multiply(a.scale_a);
      if (second != nullptr) {
        W term = W::load(second + e);
        term.multiply(a.scale_b);
        sum.add(term);
      }
      sum.add(a.offset);
      sum.store(to + e);
    }
  }

  template <int kWords, bool kWeighted = false>
  static void pool_masked(const PoolArgs<T>& a) {
    for (int i = 0; i < a.count; ++i) {
      for (const PoolTap* y = a.y; y != a.y + a.y_count; ++y) {
        const T* row = a.in.row(y->in) + i * a.in.next;
        for (const PoolTap* x = a.x; x != a.x + a.x_count; ++x) {
          pool_pixel<kWords, kWeighted>(a, *y, *x, i, row + int64_t{x->in - a.in.x.begin} * kPairs);
        }
      }
    }
  }

  template <int kWords, bool kWeighted>
  GATEDOPS_INLINE static void pool_pixel(
      const PoolArgs<T>& a, const PoolTap& y, const PoolTap& x, int i, const T* pixel) {
    const int64_t p = int64_t{y.out} * a.out_width + x.out, shift = int64_t{y.shift} * a.out_width + x.shift;
    T* to = a.store + i * a.store_next + (shift * a.out_height * a.out_width + p) * kPairs;
    W value = W::load(pixel);
    if constexpr (kWords != 0) {
      const int64_t q = int64_t{y.partner} * a.out_width + x.partner;
      const int64_t u = p * a.kernel_area + y.mask * a.kernel_width + x.mask;
      const int64_t v = q * a.kernel_area + y.mask_y * a.kernel_width + x.mask_y;
      value.multiply(
          overlap<I, T, kWords>(
              a.mask.x + i * a.mask.next + u * a.mask.stride, a.mask.y + v * a.mask.words * kPairs, a.mask.words));
    }
    if constexpr (kWeighted) {
      value.multiply(static_cast<T>(y.weight * x.weight));
    }
    value.add(W::load(to));
    value.store(to);
  }

  static void pool(const PoolArgs<T>& a) {
    switch (a.mask.words) {
      case 0:
        return pool_masked<0>(a);
      case 2:
        return pool_masked<2>(a);
      default:
        return pool_masked<-1>(a);
    }
  }

  static void resample(const PoolArgs<T>& a) {
    pool_masked<0, true>(a);
  }

  static void total(int count, const Maps<T>& in, double* sums) {
    for (int i = 0; i < count; ++i) {
      total_of_one(in, in.data + i * in.next, sums + i * kPairs);
    }
  }

  static void total_of_one(const Maps<T>& in, const T* row, double* sums) {
    constexpr int kChains = 4;  // These sums do not wait for each other.
    W chain[kChains];
    for (W& c : chain) {
      c = W::zero();
    }
    for (int p = in.y.begin; p < in.y.end; ++p, row += in.pitch) {
      for (int q = 0; q < in.x.count(); ++q) {
        chain[q % kChains].add(W::load(row + int64_t{q} * kPairs));
      }
    }
    for (int c = 1; c < kChains; ++c) {
      chain[0].add(chain[c]);
    }
    T sum[kPairs];
    chain[0].store(sum);
    for (int pair = 0; pair < kPairs; ++pair) {
      sums[pair] += static_cast<double>(sum[pair]);
    }
  }

  static constexpr ConvGramKernels<T> kernels() {
    return {input, box, MaskedBox<I, T>::masked_box, add, pool, resample, total};
  }
};

}  // namespace
}  // namespace gatedops::cpu
