// Positional popcount for AVX2: eight words a step, a full adder of five instructions.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "core/cpu/target_avx2.h"
#include "counts.h"

#include "counts-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx2Count {
  static constexpr int kWords = 8;
  using Vector = __m256i;
  using Lanes = __m256i;

  static Lanes lanes(int64_t words) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(words)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vector zero() {
    return _mm256_setzero_si256();
  }
  static Vector load(const uint32_t* from, Lanes lanes) {
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(from), lanes);
  }
  static void store(uint32_t* to, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
  }
  // sum + a + b: the sum stays, the carry is returned.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    const Vector differ = _mm256_xor_si256(a, b);
    const Vector both = _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(differ, sum));
    sum = _mm256_xor_si256(sum, differ);
    return both;
  }
};

}  // namespace

CountKernel count_avx2() {
  return count_rows<Avx2Count>;
}

}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

#endif
