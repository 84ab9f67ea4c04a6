// Row kernels of the gated layers for AVX2. Each lane tests its own bit of the broadcast gates. rows-inl.h says what
// bounds them.
#if defined(__x86_64__)

#include <immintrin.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx2.h"

#include "rows-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx2Rows {
  static uint16_t relu(const float* from, float* to) {
    return static_cast<uint16_t>(relu_of_eight(from, to) | relu_of_eight(from + 8, to + 8) << 8);
  }
  template <class E>
  static uint16_t relu(const E* from, E* to) {
    return relu_of_sixteen(from, to);
  }
  static void keep(const uint16_t* from, uint16_t* to, uint16_t gates) {
    const __m256i bits = _mm256_setr_epi16(
        1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, static_cast<int16_t>(0x8000));
    const __m256i mine = _mm256_and_si256(_mm256_set1_epi16(static_cast<int16_t>(gates)), bits);
    store(from, to, _mm256_cmpeq_epi16(mine, bits));
  }
  static void keep(const uint32_t* from, uint32_t* to, uint16_t gates) {
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), all = _mm256_set1_epi32(gates);
    for (int half = 0; half < 2; ++half) {
      const __m256i bits = _mm256_slli_epi32(low, 8 * half);
      store(from + 8 * half, to + 8 * half, _mm256_cmpeq_epi32(_mm256_and_si256(all, bits), bits));
    }
  }
  static void keep(const uint64_t* from, uint64_t* to, uint16_t gates) {
    const __m256i low = _mm256_setr_epi64x(1, 2, 4, 8), all = _mm256_set1_epi64x(gates);
    for (int part = 0; part < 4; ++part) {
      const __m256i bits = _mm256_slli_epi64(low, 4 * part);
      store(from + 4 * part, to + 4 * part, _mm256_cmpeq_epi64(_mm256_and_si256(all, bits), bits));
    }
  }

 private:
  static int relu_of_eight(const float* from, float* to) {
    const __m256 zero = _mm256_setzero_ps(), v = _mm256_loadu_ps(from);
    // The maximum is v if both are zeros or one is NaN.
    _mm256_storeu_ps(to, _mm256_max_ps(zero, v));
    return _mm256_movemask_ps(_mm256_cmp_ps(v, zero, _CMP_GT_OQ));
  }
  static void store(const void* from, void* to, __m256i mask) {
    const __m256i values = _mm256_loadu_si256(static_cast<const __m256i*>(from));
    _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_and_si256(values, mask));
  }
};

constexpr GatedLinearKernels kAvx2{rows_for<Avx2Rows>};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx2, kAvx2)

#endif
