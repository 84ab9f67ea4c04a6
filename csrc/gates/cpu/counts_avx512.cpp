// Positional popcount for AVX-512: sixteen words a step, a full adder of two instructions.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "core/cpu/target_avx512.h"
#include "counts.h"

#include "counts-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx512Count {
  static constexpr int kWords = 16;
  using Vector = __m512i;
  using Lanes = __mmask16;

  static Lanes lanes(int64_t words) {
    return static_cast<Lanes>((1u << words) - 1);
  }
  static Vector zero() {
    return _mm512_setzero_si512();
  }
  static Vector load(const uint32_t* from, Lanes lanes) {
    return _mm512_maskz_loadu_epi32(lanes, from);
  }
  static void store(uint32_t* to, Vector v) {
    _mm512_storeu_si512(to, v);
  }
  // sum + a + b: the sum stays, the carry is returned.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    constexpr int kMajority = 0xe8, kParity = 0x96;  // truth tables of three inputs
    const Vector both = _mm512_ternarylogic_epi32(sum, a, b, kMajority);
    sum = _mm512_ternarylogic_epi32(sum, a, b, kParity);
    return both;
  }
};

}  // namespace

CountKernel count_avx512() {
  return count_rows<Avx512Count>;
}

}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

#endif
