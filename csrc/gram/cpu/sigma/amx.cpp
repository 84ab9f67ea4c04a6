// Sigma of rows of bytes on AMX: TDPBUUD multiplies 16 x 16 pairs x 64 bytes in one instruction, TDPBSSD the same with
// signed bytes. The instructions take 16 cycles each (amx.cpp), 1,024 products a cycle. The operands are packed once
// for all tiles (byte_tiles.h). The columns of a register tile lie in the L1 cache, and the rows come from the L2
// cache.
#include "core/cpu/isa.h"

#if defined(GATEDOPS_AMX)

#include <immintrin.h>

#include <cstring>

#include "gram/cpu/kernels.h"

#include "core/cpu/target_avx512.h"

#include "gram/cpu/tile-inl.h"

#include "gram/cpu/avx512-inl.h"

#include "gram/cpu/amx-inl.h"

namespace gatedops::cpu {
namespace {

// A digit is worth 2^8 of the next.
constexpr double kDigit = 256.0;

// A sum of products of digits has this many registers, because each product waits for the one before it in its
// register.
constexpr int kSums = 5;

// Computes the sums of one group of rows and one of columns, whose numbers have three digits, the highest first.
// sums[0] gets the products of both highest digits, sums[1] those worth 2^8 less, sums[2] and sums[3] those worth 2^16
// less, and sums[4] those worth 2^24 less. The product of both lowest digits is left out. A product has a latency of 52
// cycles and eight products take 128 cycles, so a register may get two of them in each step.
void add_digits(const uint8_t* x, const uint8_t* y, int64_t steps) {
  for (int64_t step = 0; step < steps; ++step, x += 3 * kRegisterBytes, y += 3 * kRegisterBytes) {
    stream_tile<5>(x, kStepBytes);
    load_tile<7>(y + kRegisterBytes, kStepBytes);
    multiply_digits<1, 5, 7>();
    load_tile<7>(y + 2 * kRegisterBytes, kStepBytes);
    multiply_digits<2, 5, 7>();
    load_tile<6>(y, kStepBytes);
    multiply_digits<0, 5, 6>();
    stream_tile<5>(x + kRegisterBytes, kStepBytes);
    multiply_digits<4, 5, 7>();
    multiply_digits<1, 5, 6>();
    load_tile<7>(y + kRegisterBytes, kStepBytes);
    multiply_digits<3, 5, 7>();
    stream_tile<5>(x + 2 * kRegisterBytes, kStepBytes);
    multiply_digits<2, 5, 6>();
    multiply_digits<4, 5, 7>();
  }
}

__m512d wide(const int32_t* p) {
  return _mm512_cvtepi32_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Returns eight sums of the digits' products, exact, times the scales of the row and of the columns.
__m512d joined(const int32_t* at, __m512d row_scale, const double* column_scale) {
  constexpr int kSum = kGroupRows * kGroupRows;
  const __m512d digit = _mm512_set1_pd(kDigit);
  __m512d all = _mm512_fmadd_pd(wide(at), digit, wide(at + kSum));
  all = _mm512_fmadd_pd(all, digit, _mm512_add_pd(wide(at + 2 * kSum), wide(at + 3 * kSum)));
  all = _mm512_fmadd_pd(all, digit, wide(at + 4 * kSum));
  return _mm512_mul_pd(all, _mm512_mul_pd(row_scale, _mm512_loadu_pd(column_scale)));
}

}  // namespace

void turn_registers_on_amx(uint8_t* registers, int64_t count) {
  for (; count > 0; --count, registers += kRegisterBytes) {
    __m512i square[kGroupRows];
    for (int r = 0; r < kGroupRows; ++r) {
      square[r] = _mm512_load_si512(registers + r * kStepBytes);
    }
    Avx512Isa::transpose(square);
    for (int r = 0; r < kGroupRows; ++r) {
      _mm512_store_si512(registers + r * kStepBytes, square[r]);
    }
  }
}

void multiply_bytes_on_amx(const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, int32_t* out) {
  const TileRegisters registers;
  const int64_t begin = span.step * kRegisterBytes, bytes = span.steps * kRegisterBytes, group = x.group_bytes();
  for (int j = 0; j < span.cols; j += 2 * kGroupRows) {
    const uint8_t *y0 = y.group_of(span.j + j) + begin, *y1 = y0 + group;
    for (int i = 0; i < span.rows; i += 2 * kGroupRows) {
      const uint8_t *x0 = x.group_of(span.i + i) + begin, *x1 = x0 + group;
      clear_sums();
      for (int64_t at = 0; at < bytes; at += kRegisterBytes) {
        stream_tile<4>(x0 + at, kStepBytes);
        load_tile<6>(y0 + at, kStepBytes);
        multiply_unsigned<0, 4, 6>();
        load_tile<7>(y1 + at, kStepBytes);
        multiply_unsigned<1, 4, 7>();
        stream_tile<5>(x1 + at, kStepBytes);
        multiply_unsigned<2, 5, 6>();
        multiply_unsigned<3, 5, 7>();
      }
      store_sums(out + i * kTileStride + j, kTileStride);
    }
  }
}

void multiply_digits_on_amx(
    const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, const double* x_scale, const double* y_scale,
    float* out) {
  const TileRegisters registers;
  alignas(64) int32_t sums[kSums][kGroupRows][kGroupRows];
  for (int j = 0; j < span.cols; j += kGroupRows) {
    const uint8_t* columns = y.group_of(span.j + j);
    for (int i = 0; i < span.rows; i += kGroupRows) {
      clear_sums();
      zero_tile<4>();
      add_digits(x.group_of(span.i + i), columns, span.steps);
      store_tile<0>(sums[0], kStepBytes);
      store_tile<1>(sums[1], kStepBytes);
      store_tile<2>(sums[2], kStepBytes);
      store_tile<3>(sums[3], kStepBytes);
      store_tile<4>(sums[4], kStepBytes);
      for (int r = 0; r < kGroupRows; ++r) {
        const __m512d scale = _mm512_set1_pd(x_scale[i + r]);
        float* to = out + (i + r) * kTileStride + j;
        for (int c = 0; c < kGroupRows; c += 8) {
          _mm256_storeu_ps(to + c, _mm512_cvtpd_ps(joined(&sums[0][r][c], scale, y_scale + j + c)));
        }
      }
    }
  }
}

}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

#endif
