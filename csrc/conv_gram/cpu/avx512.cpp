// The convolutional recursion for AVX-512 with VPOPCNTDQ. One register holds the float32 numbers of kPairs pairs.
//
// RolledBox and MaskedBox bound the speed. These instructions (objdump -d) are those of a step of RolledBox, one pixel
// of a 3 x 3 layer of 64 channels for 16 pairs, and of a term of MaskedBox, one offset in the window of a pixel of 64
// channels for 16 pairs. Latencies (in cycles) and ports are those of LLVM's models. Zen 4 runs a 512-bit operation in
// two of its four 256-bit pipes.
//
// | instruction | RolledBox | MaskedBox | latency, ports on Sapphire Rapids | latency, operations a cycle on Zen 4 |
// |-------------|-----------|-----------|-----------------------------------|--------------------------------------|
// | VPANDD      |         2 |         2 | 1, p05                            | 1, two                               |
// | VPOPCNTD    |         2 |         2 | 3, p5                             | not in the model                     |
// | VPADDD      |         1 |         1 | 1, p05                            | 1, two                               |
// | VCVTDQ2PS   |         1 |         1 | 4, p0                             | not in the model                     |
// | VADDPS      |         4 |         1 | 3 to 4, p05                       | 3, one                               |
// | VMULPS      |         1 |         1 | 4, p05                            | 3, one                               |
//
// The bound of RolledBox is that of 11 operations: 5.5 cycles on two ports of Sapphire Rapids, and 5.5 on Zen 4. The 7
// loads and the store fit beside them. Zen 5 has four 512-bit pipes, which take 2.75 cycles. A box that does not roll
// writes and reads a padded row, 10 loads and 2 stores, and has the same bound. The bound of MaskedBox is that of 8
// operations: 4 cycles on both. Its 5 loads fit beside them, and each further word of 32 channels adds 3 operations.
// The terms of a pixel wait for each other's VADDPS, but the terms of the next pixel do not wait for them.
#if defined(__x86_64__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "body-inl.h"
#include "box-inl.h"
#include "masked_box-inl.h"

namespace gatedops::cpu {
namespace {

struct ConvAvx512 {
  static constexpr int kBytes = 64;
  using Counts = __m512i;

  template <int kWords>
  GATEDOPS_INLINE static Counts overlap(const uint32_t* x, const uint32_t* y, int words) {
    Counts sum = count(x[0], y);
    for (int w = 1; w < (kWords > 0 ? kWords : words); ++w) {
      sum = _mm512_add_epi32(sum, count(x[w], y + w * kPairs));
    }
    return sum;
  }
  GATEDOPS_INLINE static Counts count(uint32_t x, const uint32_t* y) {
    return _mm512_popcnt_epi32(_mm512_and_si512(_mm512_set1_epi32(static_cast<int>(x)), _mm512_loadu_si512(y)));
  }

  GATEDOPS_INLINE static void convert(Counts c, Wide<ConvAvx512, float>& to) {
    to.v[0] = _mm512_cvtepi32_ps(c);
  }
  GATEDOPS_INLINE static void convert(Counts c, Wide<ConvAvx512, double>& to) {
    to.v[0] = _mm512_cvtepi32_pd(_mm512_castsi512_si256(c));
    to.v[1] = _mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(c, 1));
  }
};

constexpr ConvKernels kConvAvx512{ConvGram<ConvAvx512, float>::kernels(), ConvGram<ConvAvx512, double>::kernels()};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(avx512, kConvAvx512)

#endif
