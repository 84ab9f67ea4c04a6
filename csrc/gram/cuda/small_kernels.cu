// The small kernels beside the Gram's, which cost little compared with it. They count the gates that are on in each row
// and layer, compute the diagonal of Lambda, split floats for the tensor cores, and add up the parts of a Gram times v.
// Memory bounds them: they read or write each word once.
#include "arithmetic.h"
#include "contract_tile.h"
#include "core/cuda/launch.h"
#include "launchers.h"

namespace gatedops::cuda {
namespace {

constexpr int kWarps = 8;  // A block has this many warps; each takes a row, with ordinary population counts.

__device__ __forceinline__ int32_t row_count(const uint32_t* row, const Layer& layer, int lane) {
  int32_t count = 0;
  for (int word = lane; word < layer.words; word += 32) {
    count += __popc(row[layer.x_first + word]);
  }
  return __reduce_add_sync(0xffffffffu, count);
}

template <class Use>
__device__ __forceinline__ void each_row(const GateRows& gates, const Use& use) {
  const int64_t step = int64_t{gridDim.x} * kWarps;
  for (int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; i < gates.rows; i += step) {
    use(i, gates.words + i * gates.stride, static_cast<int>(threadIdx.x % 32));
  }
}

__global__ void __launch_bounds__(32 * kWarps)
    row_counts(const GateRows gates, const __grid_constant__ LayerTable layers, int32_t* counts) {
  each_row(gates, [&](int64_t i, const uint32_t* row, int lane) {
    for (int l = 0; l < layers.count; ++l) {
      const int32_t count = row_count(row, layers.layer[l], lane);
      if (lane == 0) {
        counts[l * gates.rows + i] = count;
      }
    }
  });
}

template <class Out>
__global__ void __launch_bounds__(32 * kWarps)
    diagonal(const GateRows gates, const __grid_constant__ LayerTable layers, Out* out) {
  each_row(gates, [&](int64_t i, const uint32_t* row, int lane) {
    Out product = Out(1);
    for (int l = 0; l < layers.count; ++l) {
      const auto count = static_cast<Out>(row_count(row, layers.layer[l], lane));
      product = multiplied(product, multiplied(count, static_cast<Out>(layers.layer[l].scale)));
    }
    if (lane == 0) {
      out[i] = product;
    }
  });
}

constexpr int kSplitThreads = 256;

// Splits floats into TF32 numbers. Elements behind the last column are zeros.
__global__ void __launch_bounds__(kSplitThreads) split(const FloatRows x, float* high, float* rest, int64_t padded) {
  for (int64_t at = int64_t{blockIdx.x} * kSplitThreads + threadIdx.x; at < x.rows * padded;
       at += int64_t{gridDim.x} * kSplitThreads) {
    const int64_t i = at / padded, j = at % padded;
    const float value = j < x.columns ? x.data[i * x.row_stride + j * x.column_stride] : 0.0f;
    const float rounded = __uint_as_float(tf32_bits(__float_as_uint(value)));
    high[at] = rounded;
    rest[at] = __uint_as_float(tf32_bits(__float_as_uint(__fsub_rn(value, rounded))));
  }
}

template <class Kernel, class Out>
cudaError_t launch(Kernel kernel, const GateRows& gates, const LayerTable& layers, Out* out, void* stream) {
  unsigned blocks = 0;
  const cudaError_t error = blocks_for((gates.rows + kWarps - 1) / kWarps, 2048 / (32 * kWarps), blocks);
  if (error != cudaSuccess || blocks == 0) {
    return error;
  }
  kernel<<<blocks, 32 * kWarps, 0, static_cast<cudaStream_t>(stream)>>>(gates, layers, out);
  return cudaGetLastError();
}

}  // namespace

int launch_row_counts(const GateRows& gates, const LayerTable& layers, int32_t* counts, void* stream) {
  return launch(row_counts, gates, layers, counts, stream);
}

int launch_diagonal(const GateRows& gates, const LayerTable& layers, OutputType type, void* out, void* stream) {
  return type == OutputType::kFloat64 ? launch(diagonal<double>, gates, layers, static_cast<double*>(out), stream)
                                      : launch(diagonal<float>, gates, layers, static_cast<float*>(out), stream);
}

int launch_split(const FloatRows& x, float* high, float* rest, int64_t padded, void* stream) {
  unsigned blocks = 0;
  const cudaError_t error =
      blocks_for((x.rows * padded + kSplitThreads - 1) / kSplitThreads, 2048 / kSplitThreads, blocks);
  if (error != cudaSuccess || blocks == 0) {
    return error;
  }
  split<<<blocks, kSplitThreads, 0, static_cast<cudaStream_t>(stream)>>>(x, high, rest, padded);
  return cudaGetLastError();
}

template <class Value, int kTile>
int launch_sums(const PartialSums& sums, void* stream) {
  using Sum = PartialSum<Value, kTile>;
  return launch_persistent<Sum>(
      sum_partials<Value, kTile>, sums, Sum::units(sums), 2048 / Sum::kThreads, 1, static_cast<cudaStream_t>(stream));
}
template int launch_sums<float, 128>(const PartialSums&, void*);
template int launch_sums<double, 64>(const PartialSums&, void*);

}  // namespace gatedops::cuda
