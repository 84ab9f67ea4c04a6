// Launcher of the mma.sync kernel.
#include "gram_launch.h"
#include "gram_sm80_kernel.h"
#include "launch.h"

namespace gatedops::cuda {
namespace {

template <class Product, class Out>
cudaError_t launch(const GramProblem& p, int64_t planes, cudaStream_t stream) {
  using Traits = Sm80Traits<Product>;
  const auto kernel = gram_sm80<Traits, Out>;
  unsigned blocks = 0;
  cudaError_t error = blocks_for(p.schedule.tiles() * planes, Traits::kBlocksPerMultiprocessor, blocks);
  if (error != cudaSuccess || blocks == 0) {
    return error;
  }
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::kSharedBytes);
  if (error != cudaSuccess) {
    return error;
  }
  kernel<<<blocks, Traits::kThreads, Traits::kSharedBytes, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace

int launch_gram_sm80(GramProblem p, bool symmetric, OutputType type, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  p.schedule =
      schedule_of(p, symmetric, type == OutputType::kFloat64 ? Sm80Traits<double>::kTile : Sm80Traits<float>::kTile);
  switch (type) {
    case OutputType::kFloat32:
      return launch<float, float>(p, 1, s);
    case OutputType::kFloat64:
      return launch<double, double>(p, 1, s);
    case OutputType::kBFloat16:
      return launch<float, __nv_bfloat16>(p, 1, s);
    case OutputType::kInt32:
      return launch<int32_t, int32_t>(p, p.layers.count, s);
  }
  return cudaErrorInvalidValue;
}

}  // namespace gatedops::cuda
