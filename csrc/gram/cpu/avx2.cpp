// Tile kernels for AVX2. It has no vector popcount, so a byte shuffle looks up the count of each nibble, and counters
// of bytes sum these counts. A panel keeps the low and the high nibbles of its words apart, so that one AND for each
// yields what the shuffle takes. 256 bit-pairs then take 6.5 operations; with the nibbles split after the AND they
// would take 8.
//
//   instruction     for 256 bit-pairs   Ice Lake, Sapphire Rapids   Zen 4
//                                       latency  ports              latency  ymm a cycle
//   VPAND ymm       2                   1        p015               1        4
//   VPSHUFB ymm     2                   1        p15                1        2 (FP12)
//   VPADDB ymm      2                   1        p015               1        4
//   VPSRLD ymm      0.5                 1        p01                1        2 (FP12)
//   256 bit-pairs                       6.5 / 3 = 2.17 cycles       6.5 / 4 = 1.63 cycles
//   bound                               118 bit-pairs a cycle       158
//
// The figures of Zen 5 are not known here. Two VPMADD widen the counters every 31 words. bit_pairs_per_second
// (kernels.h) measures the bound of the CPU at hand.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx2.h"

#include "tile-inl.h"

#include "rate-inl.h"

namespace gatedops::cpu {
namespace {

struct Avx2Isa {
  static constexpr int kLanes = 8;
  static constexpr int kRows = 2;
  static constexpr int kVecs = 2;
  static constexpr int kMaxSteps = 31;  // a counter of one byte holds 31 * 8 <= 255
  using Vec = __m256i;

  static Vec zero() {
    return _mm256_setzero_si256();
  }
  static Vec load(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static Vec load_first(const uint32_t* p, int words) {
    const Vec lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const Vec wanted = _mm256_cmpgt_epi32(_mm256_set1_epi32(words), lane);
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(p), wanted);
  }
  static void store(void* p, Vec v) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), v);
  }
  static void stream(void* p, Vec v) {
    _mm256_stream_si256(static_cast<__m256i*>(p), v);
  }

  struct Row {
    Vec word, shifted;  // `shifted` is the word shifted by four bits
  };
  struct Column {
    Vec low, high;  // Each nibble is in the low half of its byte.
  };
  static constexpr int kPlanes = 2;
  static Row row_of(Vec v) {
    return {v, _mm256_srli_epi32(v, 4)};
  }
  static Row broadcast(const uint32_t* p) {
    return row_of(_mm256_set1_epi32(static_cast<int>(*p)));
  }
  static Column column_of(Vec v) {
    const Vec nibble = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(v, nibble), _mm256_and_si256(_mm256_srli_epi32(v, 4), nibble)};
  }
  static Column load_column(const uint32_t* p) {
    return {load(p), load(p + kLanes)};
  }
  static void store_column(uint32_t* p, Vec v) {
    const Column column = column_of(v);
    store(p, column.low);
    store(p + kLanes, column.high);
  }
  static Vec add(Vec a, Vec b) {
    return _mm256_add_epi32(a, b);
  }

  static Vec step(Vec acc, const Row& a, const Column& b) {
    const Vec bits_of_nibble = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const Vec low = _mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(a.word, b.low));
    const Vec high = _mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(a.shifted, b.high));
    return _mm256_add_epi8(acc, _mm256_add_epi8(low, high));
  }
  static Vec fold(Vec acc) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(acc, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }

  static void transpose(Vec (&r)[8]) {
    Vec pair[8], quad[8];
    for (int i = 0; i < 8; i += 2) {
      pair[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
      pair[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int h = 0; h < 2; ++h) {
        quad[i + 2 * h] = _mm256_unpacklo_epi64(pair[i + h], pair[i + h + 2]);
        quad[i + 2 * h + 1] = _mm256_unpackhi_epi64(pair[i + h], pair[i + h + 2]);
      }
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x20);
      r[i + 4] = _mm256_permute2x128_si256(quad[i], quad[i + 4], 0x31);
    }
  }

  static __m256 scaled(Vec counts, float scale) {
    return _mm256_mul_ps(_mm256_cvtepi32_ps(counts), _mm256_set1_ps(scale));
  }
  static __m256d scaled(__m128i counts, double scale) {
    return _mm256_mul_pd(_mm256_cvtepi32_pd(counts), _mm256_set1_pd(scale));
  }
  static void factor(float* out, Vec counts, float scale) {
    _mm256_storeu_ps(out, scaled(counts, scale));
  }
  static void factor(double* out, Vec counts, double scale) {
    _mm256_storeu_pd(out, scaled(_mm256_castsi256_si128(counts), scale));
    _mm256_storeu_pd(out + 4, scaled(_mm256_extracti128_si256(counts, 1), scale));
  }
  static void multiply(float* product, Vec counts, float scale) {
    _mm256_storeu_ps(product, _mm256_mul_ps(_mm256_loadu_ps(product), scaled(counts, scale)));
  }
  static void multiply(double* product, Vec counts, double scale) {
    const __m256d low = scaled(_mm256_castsi256_si128(counts), scale);
    const __m256d high = scaled(_mm256_extracti128_si256(counts, 1), scale);
    _mm256_storeu_pd(product, _mm256_mul_pd(_mm256_loadu_pd(product), low));
    _mm256_storeu_pd(product + 4, _mm256_mul_pd(_mm256_loadu_pd(product + 4), high));
  }

  using Wide = __m256d;
  static Wide load_wide(const float* p) {
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
  }
  static Wide load_wide(const double* p) {
    return _mm256_loadu_pd(p);
  }
  static Wide broadcast_wide(const double* p) {
    return _mm256_set1_pd(*p);
  }
  static void store_wide(double* p, Wide v) {
    _mm256_storeu_pd(p, v);
  }
  static Wide add_exact_product(Wide sum, Wide a, Wide b) {
    return _mm256_add_pd(sum, _mm256_mul_pd(a, b));
  }

  static uint32_t above(__m256 values, __m256 limits) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(values, limits, _CMP_NLT_UQ)));
  }
  static uint32_t above(__m256d values, __m256d limits) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(values, limits, _CMP_NLT_UQ)));
  }
  static uint32_t above(const float* values, const float* limits) {
    return above(_mm256_loadu_ps(values), _mm256_loadu_ps(limits));
  }
  static uint32_t above(const float* values, float limit) {
    return above(_mm256_loadu_ps(values), _mm256_set1_ps(limit));
  }
  static uint32_t above(const double* values, const double* limits) {
    return above(_mm256_loadu_pd(values), _mm256_loadu_pd(limits));
  }
  static uint32_t above(const double* values, double limit) {
    return above(_mm256_loadu_pd(values), _mm256_set1_pd(limit));
  }
};

// The loop of rate-inl.h keeps both vectors of a column in registers.
GATEDOPS_INLINE void renew(Avx2Isa::Column& column) {
  renew(column.low);
  renew(column.high);
}

constexpr TileKernels kTileAvx2 = Tile<Avx2Isa>::kernels(nullptr);
constexpr RateLoop kRateAvx2 = Rate<Avx2Isa>::loop();

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx2, kTileAvx2)
GATEDOPS_KERNELS_OF(avx2, kRateAvx2)

#endif
