// Row kernels of the gated layers for AVX-512: sixteen gates are a mask register.
#if defined(__x86_64__)

#include <immintrin.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstring>

#include "gated_linear_rows.h"
#include "target_avx512.h"

#include "gated_linear_rows_body.h"

namespace gatedops::cpu {
namespace {

struct Avx512Rows {
  static void keep(const uint16_t* from, uint16_t* to, uint16_t gates) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_maskz_loadu_epi16(gates, from));
  }
  static void keep(const uint32_t* from, uint32_t* to, uint16_t gates) {
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32(gates, from));
  }
  static void keep(const uint64_t* from, uint64_t* to, uint16_t gates) {
    _mm512_storeu_si512(to, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(gates), from));
    _mm512_storeu_si512(to + 8, _mm512_maskz_loadu_epi64(static_cast<__mmask8>(gates >> 8), from + 8));
  }
};

}  // namespace

GateRows gate_rows_avx512(ScalarType dtype) { return rows_for<Avx512Rows>(dtype); }

}  // namespace gatedops::cpu

#include "target_end.h"

#endif
