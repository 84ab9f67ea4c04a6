// The convolutional recursion for AVX2. Two registers hold the float32 numbers of kPairs pairs. Bits are counted with a
// byte shuffle, as in gram/cpu/avx2.cpp.
//
// RolledBox and MaskedBox bound the speed. These instructions (objdump -d) are those of a step of RolledBox, one pixel
// of a 3 x 3 layer of 64 channels for 16 pairs, and of a term of MaskedBox, one offset in the window of a pixel of 64
// channels for 16 pairs. Latencies (in cycles) and ports are those of llvm-mca for Ice Lake and Zen 3.
//
// | instruction          | RolledBox | MaskedBox | latency, ports on Ice Lake | latency, per cycle on Zen 3 |
// |----------------------|-----------|-----------|----------------------------|-----------------------------|
// | VPAND                |        12 |        12 | 1, p015                    | 1, four                     |
// | VPSHUFB              |         8 |         8 | 1, p15                     | 1, two                      |
// | VPADDB               |         6 |         6 | 1, p015                    | 1, four                     |
// | VPSRLD               |         4 |         4 | 1, p01                     | 1, two                      |
// | VPMADDUBSW, VPMADDWD |     2 + 2 |     2 + 2 | 5, p01                     | 3, two                      |
// | VCVTDQ2PS            |         2 |         2 | 4, p01                     | 3, two                      |
// | VADDPS               |         8 |         2 | 4, p01                     | 3, two                      |
// | VMULPS               |         2 |         2 | 4, p01                     | 3, two                      |
//
// The bound is that of 46 and of 40 operations: 15.3 and 13.3 cycles on three ports of Intel, 11.5 and 10 on four pipes
// of AMD.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx2.h"

#include "body-inl.h"
#include "box-inl.h"
#include "masked_box-inl.h"

namespace gatedops::cpu {
namespace {

struct ConvAvx2 {
  static constexpr int kBytes = 32;
  static constexpr int kMaxSteps = 31;  // A step adds at most 8 to a byte, and 31 * 8 <= 255.
  struct Counts {
    __m256i v[2];
  };

  template <int kWords>
  GATEDOPS_INLINE static Counts overlap(const uint32_t* x, const uint32_t* y, int words) {
    const int total = kWords > 0 ? kWords : words;
    Counts sum = steps(x, y, 0, std::min(total, kMaxSteps));
    for (int w = kMaxSteps; w < total; w += kMaxSteps) {
      const Counts more = steps(x, y, w, std::min(total, w + kMaxSteps));
      sum.v[0] = _mm256_add_epi32(sum.v[0], more.v[0]);
      sum.v[1] = _mm256_add_epi32(sum.v[1], more.v[1]);
    }
    return sum;
  }

  GATEDOPS_INLINE static Counts steps(const uint32_t* x, const uint32_t* y, int begin, int end) {
    __m256i bytes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int w = begin; w < end; ++w) {
      const __m256i a = _mm256_set1_epi32(static_cast<int>(x[w]));
      for (int half = 0; half < 2; ++half) {
        const auto* at = reinterpret_cast<const __m256i*>(y + w * kPairs + half * 8);
        bytes[half] = _mm256_add_epi8(bytes[half], count(_mm256_and_si256(a, _mm256_loadu_si256(at))));
      }
    }
    return {{fold(bytes[0]), fold(bytes[1])}};
  }

  GATEDOPS_INLINE static __m256i count(__m256i both) {
    const __m256i bits_of_nibble = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    return _mm256_add_epi8(
        _mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(both, nibble)),
        _mm256_shuffle_epi8(bits_of_nibble, _mm256_and_si256(_mm256_srli_epi32(both, 4), nibble)));
  }
  GATEDOPS_INLINE static __m256i fold(__m256i bytes) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }

  GATEDOPS_INLINE static void convert(const Counts& c, Wide<ConvAvx2, float>& to) {
    to.v[0] = _mm256_cvtepi32_ps(c.v[0]);
    to.v[1] = _mm256_cvtepi32_ps(c.v[1]);
  }
  GATEDOPS_INLINE static void convert(const Counts& c, Wide<ConvAvx2, double>& to) {
    for (int half = 0; half < 2; ++half) {
      to.v[2 * half] = _mm256_cvtepi32_pd(_mm256_castsi256_si128(c.v[half]));
      to.v[2 * half + 1] = _mm256_cvtepi32_pd(_mm256_extracti128_si256(c.v[half], 1));
    }
  }
};

constexpr ConvKernels kConvAvx2{ConvGram<ConvAvx2, float>::kernels(), ConvGram<ConvAvx2, double>::kernels()};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx2, kConvAvx2)

#endif
