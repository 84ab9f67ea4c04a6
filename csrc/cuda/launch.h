// Starting a persistent kernel: as many blocks as the device runs at a time, or fewer.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "gram_problem.h"

namespace gatedops::cuda {

// Tiles of `edge` rows and columns.
inline TileSchedule schedule_of(const GramProblem& p, bool symmetric, int64_t edge) {
  return {(p.x.rows + edge - 1) / edge, (p.y.rows + edge - 1) / edge, symmetric};
}

// Blocks for `units` pieces of work, `resident` of them at a time on each multiprocessor.
inline cudaError_t blocks_for(int64_t units, int resident, unsigned& blocks) {
  int device = 0, processors = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) {
    return error;
  }
  const cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  blocks = static_cast<unsigned>(std::min<int64_t>(units, int64_t{processors} * resident));
  return error;
}

}  // namespace gatedops::cuda
