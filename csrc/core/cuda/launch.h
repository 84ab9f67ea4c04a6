// Starting a persistent kernel: as many blocks as the device runs at a time, or fewer.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace gatedops::cuda {

// Blocks for `units` pieces of work, `resident` of them at a time on each multiprocessor, a multiple of `cluster`.
inline cudaError_t blocks_for(int64_t units, int resident, unsigned& blocks, int cluster = 1) {
  int device = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return error;
  }
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  blocks = static_cast<unsigned>(std::min<int64_t>(units, int64_t{processors} * resident / cluster) * cluster);
  return error;
}

// A persistent kernel, `resident` blocks of it on a multiprocessor, in clusters.
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
