// Packing and positional popcount for AVX-512. A step of packing takes sixteen elements; masks are mask registers.
//
// Both are bound by memory: an element of float32 moves 4 bytes in and 1/8 byte out, and a counted gate 1/8 byte in.
// Ports and latencies (in cycles) are those of LLVM's model of Sapphire Rapids:
//
// | instruction | latency | ports | what it is for                                   |
// |-------------|---------|-------|--------------------------------------------------|
// | VCMPPS      |       3 | p5    | packing: one for sixteen float32 gates           |
// | KMOVW       |       3 | p0    | packing: one for sixteen gates                   |
// | VPTERNLOGD  |       1 | p05   | counting: two for a full adder, a row of 512 bits |
//
// A row of 512 bits, 64 bytes, thus takes one cycle in registers; on Zen 4 too, whose four 256-bit pipes take two such
// operations a cycle.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "counts-inl.h"

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

// Positional popcount for AVX-512: a vector has sixteen words, and a full adder takes two instructions.
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
  // Adds a and b to sum, and returns the carry.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    constexpr int kMajority = 0xe8, kParity = 0x96;  // These are truth tables of three inputs.
    const Vector both = _mm512_ternarylogic_epi32(sum, a, b, kMajority);
    sum = _mm512_ternarylogic_epi32(sum, a, b, kParity);
    return both;
  }
};

constexpr GateKernels kAvx512{pack_for<Avx512Pack>, count_rows<Avx512Count>};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx512, kAvx512)

#endif
