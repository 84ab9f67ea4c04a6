// The product over layers of one pair, in registers: counts of a layer are gathered in int32 and multiplied into
// the product when the layer closes. The order and the roundings are those of the CPU kernels.
#pragma once

#include "gram_problem.h"
#include "instructions.h"

namespace gatedops::cuda {

// Counts start here. For float32 these are the bits of 2^23: a sum of fewer than 2^23 gates then is the float
// 2^23 + count, one subtraction from the count, with no conversion.
template <class Product>
constexpr int32_t kCountSeed = sizeof(Product) == 4 ? 0x4B000000 : 0;
template <>
constexpr int32_t kCountSeed<int32_t> = 0;

template <bool kWide>
__device__ __forceinline__ float count_of(int32_t counted, float) {
  return kWide ? __int2float_rn(counted - kCountSeed<float>) : __fsub_rn(__int_as_float(counted), 8388608.0f);
}
// The same in the mantissa of a double, whose high word is a constant.
template <bool kWide>
__device__ __forceinline__ double count_of(int32_t counted, double) {
  return __dsub_rn(__hiloint2double(0x43300000, counted), 4503599627370496.0);
}

__device__ __forceinline__ float multiplied(float a, float b) {
  return __fmul_rn(a, b);
}
__device__ __forceinline__ double multiplied(double a, double b) {
  return __dmul_rn(a, b);
}

template <bool kWide, class Product, int kValues>
__device__ __forceinline__ void multiply_counts(
    int32_t (&counts)[kValues], Product (&product)[kValues], Product scale) {
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    product[i] = multiplied(product[i], multiplied(count_of<kWide>(counts[i], Product()), scale));
    counts[i] = kCountSeed<Product>;
  }
}

// product *= count * scale for all pairs of a thread; counts start anew.
template <class Product, int kValues>
__device__ __forceinline__ void close_layer(
    const Layer& layer, int32_t (&counts)[kValues], Product (&product)[kValues]) {
  const auto scale = static_cast<Product>(layer.scale);
  if (sizeof(Product) == 4 && layer.words >= kWideWords) {
    multiply_counts<true>(counts, product, scale);
  } else {
    multiply_counts<false>(counts, product, scale);
  }
}

}  // namespace gatedops::cuda
