// Starts a persistent kernel, one that has at most as many blocks as the device runs at a time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace gatedops::cuda {

// Computes how many blocks do `units` pieces of work if each multiprocessor runs `resident` blocks at a time. A cluster
// of `cluster` blocks does a unit together, so that the result is a multiple of `cluster`.
inline cudaError_t blocks_for(int64_t units, int resident, unsigned& blocks, int cluster = 1) {
  int device = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return error;
  }
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  blocks = static_cast<unsigned>(std::min<int64_t>(units, int64_t{processors} * resident / cluster) * cluster);
  return error;
}

// Launches a persistent kernel in clusters of `cluster` blocks, with `resident` blocks on each multiprocessor.
template <class Traits, class Problem>
cudaError_t launch_persistent(
    void (*kernel)(Problem), const Problem& p, int64_t units, int resident, int cluster, cudaStream_t stream) {
  unsigned blocks = 0;
  cudaError_t error = blocks_for(units, resident, blocks, cluster);
  if (error != cudaSuccess || blocks == 0) {
    return error;
  }
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error != cudaSuccess) {
    return error;
  }
  cudaLaunchAttribute clusters;
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = Traits::kSharedBytes;
  config.stream = stream;
  config.attrs = &clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;  // GPUs before sm_90 have no clusters
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace gatedops::cuda
