// Packing and positional popcount for AVX2. A step of packing takes eight elements; a mask is a whole 32-bit lane.
//
// Both are bound by memory: an element of float32 moves 4 bytes in and 1/8 byte out, and a counted gate 1/8 byte in.
// Ports and latencies (in cycles) are those of LLVM's model of Sapphire Rapids:
//
// | instruction        | latency | ports | what it is for                                    |
// |--------------------|---------|-------|---------------------------------------------------|
// | VCMPPS             |       4 | p01   | packing: one for eight float32 gates              |
// | VMOVMSKPS          |       3 | p0    | packing: one for eight gates                      |
// | VPXOR, VPAND, VPOR |       1 | p015  | counting: five for a full adder, a row of 256 bits |
//
// A row of 256 bits, 32 bytes, thus takes 1.7 cycles in registers.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>

#include "kernels.h"

#include "core/cpu/target_avx2.h"

#include "counts-inl.h"

#include "pack-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx2Pack {
  static constexpr int kLanes = 8;
  using Mask = __m256i;

  static Mask on(const float* q) {
    return _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(q), _mm256_setzero_ps(), _CMP_GT_OQ));
  }
  static Mask on(const double* q) {
    const __m256d zero = _mm256_setzero_pd();
    const __m256 low = _mm256_castpd_ps(_mm256_cmp_pd(_mm256_loadu_pd(q), zero, _CMP_GT_OQ));
    const __m256 high = _mm256_castpd_ps(_mm256_cmp_pd(_mm256_loadu_pd(q + 4), zero, _CMP_GT_OQ));
    const __m256 halves = _mm256_shuffle_ps(low, high, 0x88);
    return _mm256_permute4x64_epi64(_mm256_castps_si256(halves), 0xd8);
  }
  template <class Half>
  static Mask on(const Half* q) {
    const __m256i v = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
    const __m256i positive = _mm256_cmpgt_epi32(v, _mm256_setzero_si256());
    return _mm256_andnot_si256(_mm256_cmpgt_epi32(v, _mm256_set1_epi32(Half::kInfinity)), positive);
  }
  static Mask on(const bool* q) {
    const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)));
    return _mm256_cmpgt_epi32(v, _mm256_setzero_si256());
  }
  static uint32_t bits(Mask mask) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask)));
  }
  static __m256i zero() {
    return _mm256_setzero_si256();
  }
  static __m256i set_bit(__m256i column, Mask mask, int bit) {
    return _mm256_or_si256(column, _mm256_and_si256(mask, _mm256_set1_epi32(static_cast<int>(1u << bit))));
  }
  static void store(uint32_t* to, __m256i column) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), column);
  }
};

// Positional popcount for AVX2: a vector has eight words, and a full adder takes five instructions.
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
  // Adds a and b to sum, and returns the carry.
  static Vector carry(Vector& sum, Vector a, Vector b) {
    const Vector differ = _mm256_xor_si256(a, b);
    const Vector both = _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(differ, sum));
    sum = _mm256_xor_si256(sum, differ);
    return both;
  }
};

constexpr GateKernels kAvx2{pack_for<Avx2Pack>, count_rows<Avx2Count>};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx2, kAvx2)

#endif
