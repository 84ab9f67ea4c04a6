// The convolutional recursion for AVX-512 with VPOPCNTDQ: one register holds the float32 numbers of kPairs pairs.
//
// A pixel of a 3 x 3 layer of 64 channels is 11 such operations (2 VPANDD, 2 VPOPCNTD, VPADDD, VCVTDQ2PS, VMULPS, 4
// VADDPS) on two ports, 10 loads on two, 2 stores: 5.5 cycles for 16 pairs.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "body-inl.h"
#include "box-inl.h"

namespace gatedops::cpu {
namespace {

struct ConvAvx512 {
  static constexpr int kBytes = 64;
  using Counts = __m512i;

  template <int kWords>
  GATEDOPS_INLINE static Counts overlap(const uint32_t* x, const uint32_t* y, int words) {
    Counts sum = count(x[0], y);
    for (int w = 1; w < (kWords > 0 ? kWords : words); ++w) {
      sum = _mm512_add_epi32(sum, count(x[w], y + w * kPairs));
    }
    return sum;
  }
  GATEDOPS_INLINE static Counts count(uint32_t x, const uint32_t* y) {
    return _mm512_popcnt_epi32(_mm512_and_si512(_mm512_set1_epi32(static_cast<int>(x)), _mm512_loadu_si512(y)));
  }

  GATEDOPS_INLINE static void convert(Counts c, Wide<ConvAvx512, float>& to) {
    to.v[0] = _mm512_cvtepi32_ps(c);
  }
  GATEDOPS_INLINE static void convert(Counts c, Wide<ConvAvx512, double>& to) {
    to.v[0] = _mm512_cvtepi32_pd(_mm512_castsi512_si256(c));
    to.v[1] = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(c, 1));
  }
};

constexpr ConvKernels kConvAvx512{ConvGram<ConvAvx512, float>::kernels(), ConvGram<ConvAvx512, double>::kernels()};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx512, kConvAvx512)

#endif
