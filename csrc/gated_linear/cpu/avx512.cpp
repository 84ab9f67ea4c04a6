// Row kernels of the gated layers for AVX-512. Sixteen gates are a mask register. rows-inl.h says what bounds them.
#if defined(__x86_64__)

#include <immintrin.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "rows-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx512Rows {
  static uint16_t relu(const float* from, float* to) {
    const __m512 zero = _mm512_setzero_ps(), v = _mm512_loadu_ps(from);
    // The maximum is v if both are zeros or one is NaN.
    _mm512_storeu_ps(to, _mm512_max_ps(zero, v));
    return _mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ);
  }
  static uint16_t relu(const double* from, double* to) {
    return static_cast<uint16_t>(relu_of_eight(from, to) | relu_of_eight(from + 8, to + 8) << 8);
  }
  template <class Half>
  static uint16_t relu(const Half* from, Half* to) {
    constexpr int16_t kMinusInfinity = Element<Half>::kMinusInfinity;
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __mmask16 below = _mm256_cmpgt_epi16_mask(v, _mm256_set1_epi16(INT16_MIN));
    const __mmask16 negative = _mm256_mask_cmple_epi16_mask(below, v, _mm256_set1_epi16(kMinusInfinity));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_mov_epi16(static_cast<__mmask16>(~negative), v));
    const __mmask16 positive = _mm256_cmpgt_epi16_mask(v, _mm256_setzero_si256());
    return _mm256_mask_cmple_epi16_mask(positive, v, _mm256_set1_epi16(kMinusInfinity & 0x7fff));
  }
  static void keep(const uint16_t* from, uint16_t* to, uint16_t gates) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_loadu_epi16(gates, from));
  }
  static void keep(const uint32_t* from, uint32_t* to, uint16_t gates) {
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32(gates, from));
  }
  static void keep(const uint64_t* from, uint64_t* to, uint16_t gates) {
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(gates), from));
    _mm512_storeu_si512(to + 8, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(gates >> 8), from + 8));
  }

 private:
  static unsigned relu_of_eight(const double* from, double* to) {
    const __m512d zero = _mm512_setzero_pd(), v = _mm512_loadu_pd(from);
    _mm512_storeu_pd(to, _mm512_max_pd(zero, v));
    return _mm512_cmp_pd_mask(v, zero, _CMP_GT_OQ);
  }
};

constexpr GatedLinearKernels kAvx512{rows_for<Avx512Rows>};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx512, kAvx512)

#endif
