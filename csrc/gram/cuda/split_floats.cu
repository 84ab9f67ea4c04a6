// Splits the inputs of Sigma for the tensor cores; x is read once.
#include "split_floats.h"

#include "core/cuda/launch.h"
#include "launch.h"

namespace gatedops::cuda {
namespace {

constexpr int kThreads = 256;

// Elements behind the last column are zeros.
__global__ void __launch_bounds__(kThreads) split(const FloatRows x, float* high, float* rest, int64_t padded) {
  for (int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x; at < x.rows * padded;
       at += int64_t{gridDim.x} * kThreads) {
    const int64_t i = at / padded, j = at % padded;
    const float value = j < x.columns ? x.data[i * x.row_stride + j * x.column_stride] : 0.0f;
    const float rounded = __uint_as_float(tf32_bits(__float_as_uint(value)));
    high[at] = rounded;
    rest[at] = __uint_as_float(tf32_bits(__float_as_uint(__fsub_rn(value, rounded))));
  }
}

}  // namespace

int launch_split(const FloatRows& x, float* high, float* rest, int64_t padded, void* stream) {
  unsigned blocks = 0;
  const cudaError_t error = blocks_for((x.rows * padded + kThreads - 1) / kThreads, 2048 / kThreads, blocks);
  if (error != cudaSuccess || blocks == 0) {
    return error;
  }
  split<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(x, high, rest, padded);
  return cudaGetLastError();
}

}  // namespace gatedops::cuda
