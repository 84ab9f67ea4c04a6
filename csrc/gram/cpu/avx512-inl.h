// Traits of AVX-512 with VPOPCNTDQ for tile-inl.h. Include this file after tile-inl.h and under
// core/cpu/target_avx512.h. The file of each instruction set that uses the traits has its own copy of them.
namespace gatedops::cpu {
namespace {

struct Avx512Isa : WholeWords<Avx512Isa> {
  static constexpr int kLanes = 16;
  static constexpr int kRows = 4;
  static constexpr int kVecs = 4;
  static constexpr int kMaxSteps = kPanelWords;
  using Vec = __m512i;
  using Row = Vec;
  using Column = Vec;

  static Vec zero() {
    return _mm512_setzero_si512();
  }
  static Vec load(const void* p) {
    return _mm512_loadu_si512(p);
  }
  static Vec load_first(const uint32_t* p, int words) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(0xffff >> (kLanes - words)), p);
  }
  static void store(void* p, Vec v) {
    _mm512_storeu_si512(p, v);
  }
  static void stream(void* p, Vec v) {
    _mm512_stream_si512(static_cast<__m512i*>(p), v);
  }
  static Vec broadcast(const uint32_t* p) {
    return _mm512_set1_epi32(static_cast<int>(*p));
  }
  static Vec add(Vec a, Vec b) {
    return _mm512_add_epi32(a, b);
  }
  static Vec step(Vec acc, Vec a, Vec b) {
    return _mm512_add_epi32(acc, _mm512_popcnt_epi32(_mm512_and_si512(a, b)));
  }
  static Vec fold(Vec acc) {
    return acc;
  }

  static void transpose(Vec (&r)[16]) {
    Vec pair[16], quad[16];
    for (int i = 0; i < 16; i += 2) {
      pair[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      pair[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      for (int h = 0; h < 2; ++h) {
        quad[i + 2 * h] = _mm512_unpacklo_epi64(pair[i + h], pair[i + h + 2]);
        quad[i + 2 * h + 1] = _mm512_unpackhi_epi64(pair[i + h], pair[i + h + 2]);
      }
    }
    for (int i = 0; i < 4; ++i) {  // quad[4 * g + i] holds columns i, i + 4, i + 8, i + 12 of rows 4 g to 4 g + 3
      const Vec even01 = _mm512_shuffle_i32x4(quad[i], quad[i + 4], 0x88);
      const Vec odd01 = _mm512_shuffle_i32x4(quad[i], quad[i + 4], 0xdd);
      const Vec even23 = _mm512_shuffle_i32x4(quad[i + 8], quad[i + 12], 0x88);
      const Vec odd23 = _mm512_shuffle_i32x4(quad[i + 8], quad[i + 12], 0xdd);
      r[i] = _mm512_shuffle_i32x4(even01, even23, 0x88);
      r[i + 4] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
      r[i + 8] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
      r[i + 12] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
  }

  static __m512 scaled(Vec counts, float scale) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(counts), _mm512_set1_ps(scale));
  }
  static __m512d scaled(__m256i counts, double scale) {
    return _mm512_mul_pd(_mm512_cvtepi32_pd(counts), _mm512_set1_pd(scale));
  }
  static void factor(float* out, Vec counts, float scale) {
    _mm512_storeu_ps(out, scaled(counts, scale));
  }
  static void factor(double* out, Vec counts, double scale) {
    _mm512_storeu_pd(out, scaled(_mm512_castsi512_si256(counts), scale));
    _mm512_storeu_pd(out + 8, scaled(_mm512_extracti64x4_epi64(counts, 1), scale));
  }
  static void multiply(float* product, Vec counts, float scale) {
    _mm512_storeu_ps(product, _mm512_mul_ps(_mm512_loadu_ps(product), scaled(counts, scale)));
  }
  static void multiply(double* product, Vec counts, double scale) {
    const __m512d low = scaled(_mm512_castsi512_si256(counts), scale);
    const __m512d high = scaled(_mm512_extracti64x4_epi64(counts, 1), scale);
    _mm512_storeu_pd(product, _mm512_mul_pd(_mm512_loadu_pd(product), low));
    _mm512_storeu_pd(product + 8, _mm512_mul_pd(_mm512_loadu_pd(product + 8), high));
  }

  using Wide = __m512d;
  static Wide load_wide(const float* p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
  }
  static Wide load_wide(const double* p) {
    return _mm512_loadu_pd(p);
  }
  static Wide broadcast_wide(const double* p) {
    return _mm512_set1_pd(*p);
  }
  static void store_wide(double* p, Wide v) {
    _mm512_storeu_pd(p, v);
  }
  static Wide add_exact_product(Wide sum, Wide a, Wide b) {
    return _mm512_fmadd_pd(a, b, sum);
  }

  static uint32_t above(const float* values, const float* limits) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_loadu_ps(limits), _CMP_NLT_UQ);
  }
  static uint32_t above(const float* values, float limit) {
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(values), _mm512_set1_ps(limit), _CMP_NLT_UQ);
  }
  static uint32_t above(const double* values, const double* limits) {
    return _mm512_cmp_pd_mask(_mm512_loadu_pd(values), _mm512_loadu_pd(limits), _CMP_NLT_UQ);
  }
  static uint32_t above(const double* values, double limit) {
    return _mm512_cmp_pd_mask(_mm512_loadu_pd(values), _mm512_set1_pd(limit), _CMP_NLT_UQ);
  }
};

}  // namespace
}  // namespace gatedops::cpu
