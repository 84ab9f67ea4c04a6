// Packing for AVX-512: sixteen elements a step, masks in mask registers.
#if defined(__x86_64__)

#include <immintrin.h>

#include "core/cpu/target_avx512.h"
#include "pack.h"

#include "pack-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx512Pack {
  static constexpr int kLanes = 16;
  using Mask = __mmask16;

  static Mask on(const float* q) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(q), _mm512_setzero_ps(), _CMP_GT_OQ);
  }
  static Mask on(const double* q) {
    const __m512d zero = _mm512_setzero_pd();
    const unsigned low = _mm512_cmp_pd_mask(_mm512_loadu_pd(q), zero, _CMP_GT_OQ);
    const unsigned high = _mm512_cmp_pd_mask(_mm512_loadu_pd(q + 8), zero, _CMP_GT_OQ);
    return static_cast<Mask>(low | high << 8);
  }
  template <class Half>
  static Mask on(const Half* q) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
    const Mask positive = _mm256_cmpgt_epi16_mask(v, _mm256_setzero_si256());
    return _mm256_mask_cmple_epi16_mask(positive, v, _mm256_set1_epi16(Half::kInfinity));
  }
  static Mask on(const bool* q) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    return _mm_test_epi8_mask(v, v);
  }
  static uint32_t bits(Mask mask) {
    return mask;
  }
  static __m512i zero() {
    return _mm512_setzero_si512();
  }
  static __m512i set_bit(__m512i column, Mask mask, int bit) {
    return _mm512_mask_or_epi32(column, mask, column, _mm512_set1_epi32(static_cast<int>(1u << bit)));
  }
  static void store(uint32_t* to, __m512i column) {
    _mm512_storeu_si512(to, column);
  }
};

}  // namespace

PackKernels pack_avx512(GateSource source) {
  return pack_for<Avx512Pack>(source);
}

}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

#endif
