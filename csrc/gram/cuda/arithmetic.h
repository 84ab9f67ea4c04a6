// The arithmetic of one pair, in registers. The counts of a layer are gathered in int32. At the end of the layer they
// are multiplied into the product over layers, in the order and with the roundings of the CPU kernels. Sigma comes
// last.
#pragma once

#include "core/cuda/instructions.h"
#include "problem.h"

namespace gatedops::cuda {

// Counts start at this number. For float32 it is the bits of 2^23. The bits of a sum of fewer than 2^23 gates then are
// those of the float 2^23 + count, and need no conversion.
template <class Product>
constexpr int32_t kCountSeed = sizeof(Product) == 4 ? 0x4B000000 : 0;
template <>
constexpr int32_t kCountSeed<int32_t> = 0;

__device__ __forceinline__ float multiplied(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ double multiplied(double a, double b) {
  return __dmul_rn(a, b);
}

__device__ __forceinline__ float multiplied_added(float a, float b, float sum) {
  return __fmaf_rn(a, b, sum);
}
__device__ __forceinline__ double multiplied_added(double a, double b, double sum) {
  return __fma_rn(a, b, sum);
}

__device__ __forceinline__ float rounded(uint32_t integer, float) {
  return __uint2float_rn(integer);
}
__device__ __forceinline__ double rounded(uint32_t integer, double) {
  return __uint2double_rn(integer);
}

// Returns count * scale, rounded once. With x = 2^23 + count that is fma(x, scale, -2^23 scale), because the product
// inside it and 2^23 scale are exact for the scales of is_fused. It takes one instruction; to subtract first takes two.
template <bool kFused>
__device__ __forceinline__ float scaled_count(int32_t counted, float scale) {
  return kFused ? __fmaf_rn(__int_as_float(counted), scale, __fmul_rn(-8388608.0f, scale))
                : __fmul_rn(__int2float_rn(counted - kCountSeed<float>), scale);
}
// The same for a double: the count is in its mantissa, and its high word is a constant.
template <bool kFused>
__device__ __forceinline__ double scaled_count(int32_t counted, double scale) {
  return __dmul_rn(__dsub_rn(__hiloint2double(0x43300000, counted), 4503599627370496.0), scale);
}

// Tells whether a layer's count fits the mantissa, and whether 2^23 times its scale is exact. A negative scale is left
// out, because it would turn the sign of a count of 0.
__device__ __forceinline__ bool is_fused(const Layer& layer, float scale) {
  return layer.words < kWideWords && scale > 0x1p-100f && scale < 0x1p100f;
}
__device__ __forceinline__ bool is_fused(const Layer&, double) {
  return true;
}

template <bool kFused, class Product, int kValues>
__device__ __forceinline__ void multiply_counts(
    int32_t (&counts)[kValues], Product (&product)[kValues], Product scale) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    product[i] = multiplied(product[i], scaled_count<kFused>(counts[i], scale));
    counts[i] = kCountSeed<Product>;
  }
}

// Multiplies product by count * scale for all pairs of a thread, and resets the counts.
template <class Product, int kValues>
__device__ __forceinline__ void close_layer(
    const Layer& layer, int32_t (&counts)[kValues], Product (&product)[kValues]) {
  const auto scale = static_cast<Product>(layer.scale);
  if (is_fused(layer, scale)) {
    multiply_counts<true>(counts, product, scale);
  } else {
    multiply_counts<false>(counts, product, scale);
  }
}

// Multiplies product by Sigma, which was gathered like a count, is exact modulo 2^32, and is rounded once. It must come
// after all layers.
template <class Product, int kValues>
__device__ __forceinline__ void close_sigma(const int32_t (&gathered)[kValues], Product (&product)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const uint32_t sigma = static_cast<uint32_t>(gathered[i]) - static_cast<uint32_t>(kCountSeed<Product>);
    product[i] = multiplied(rounded(sigma, Product()), product[i]);
  }
}

// The tensor cores multiply TF32 numbers. A float32 number is the sum of two of them and a rest below 2^-22 of it.

// Returns the bits of a float rounded to 10 bits of mantissa, ties to even. An infinity stays one, and a NaN stays a
// NaN.
GATEDOPS_HOST_DEVICE constexpr uint32_t tf32_bits(uint32_t bits) {
  const bool finite = (bits & 0x7F800000u) != 0x7F800000u;
  const uint32_t rounded = finite ? bits + 0xFFFu + (bits >> 13 & 1u) : bits | (bits & 0x1FFFu ? 0x00400000u : 0u);
  return rounded & 0xFFFFE000u;
}

}  // namespace gatedops::cuda
