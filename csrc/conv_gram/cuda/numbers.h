// Numbers of the host that kernels read travel as parameters of launches. A copy from the host's memory would
// make the host wait for the GPU, and could not be captured in a CUDA graph.
#pragma once

#include <algorithm>
#include <vector>

#include "steps.h"

namespace gatedops::cuda {

// What one launch stores, a number a thread: 2 of the 4 KiB of a kernel's parameters.
struct Numbers {
  double* to;
  int32_t count;
  double values[kEntryThreads];
};
static_assert(sizeof(Numbers) <= 4096);

#if defined(__CUDACC__) || defined(GATEDOPS_EMULATED)
__device__ __forceinline__ void run_numbers(const Numbers& numbers) {
  const auto i = static_cast<int32_t>(threadIdx.x);
  if (i < numbers.count) {
    numbers.to[i] = numbers.values[i];
  }
}
#endif

// Calls device.numbers(part) for all of `values`, which go to `to`.
template <class Device>
void store_numbers(const std::vector<double>& values, double* to, const Device& device) {
  for (size_t first = 0; first < values.size(); first += kEntryThreads) {
    Numbers part{to + first, static_cast<int32_t>(std::min<size_t>(kEntryThreads, values.size() - first)), {}};
    std::copy_n(values.begin() + static_cast<int64_t>(first), part.count, part.values);
    device.numbers(part);
  }
}

}  // namespace gatedops::cuda
