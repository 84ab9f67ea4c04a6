// Launcher of the wgmma kernel.
#include <cudaTypedefs.h>

#include <cstdlib>
#include <string_view>

#include "gram_launch.h"
#include "gram_sm90_kernel.h"
#include "launch.h"

namespace gatedops::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));

// cuTensorMapEncodeTiled belongs to the driver library, which is found at run time: nothing to link.
PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  const bool usable = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return usable ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function) : nullptr;
}

// Words [first, first + words) of all rows, in boxes of one stage's operand.
bool encode(const GateRows& gates, int32_t first, int32_t words, TensorMap& map) {
  static const auto encode_tiled = find_encode();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(words), static_cast<cuuint64_t>(gates.rows)};
  const int64_t stride = std::max<int64_t>(gates.stride, (words + 3) / 4 * 4);  // a single row has stride 0
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 4};
  const cuuint32_t box[] = {kStageWords, Sm90Traits<float>::kTile}, every[] = {1, 1};
  auto* start = const_cast<uint32_t*>(gates.words + first);
  return encode_tiled != nullptr &&
         encode_tiled(
             reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_INT32, 2, start, sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class Product, class Out>
cudaError_t launch(const Sm90Problem& p, int64_t planes, cudaStream_t stream) {
  using Traits = Sm90Traits<Product>;
  const auto kernel = gram_sm90<Traits, Out>;
  unsigned blocks = 0;
  cudaError_t error = blocks_for(p.gram.schedule.tiles() * planes, 1, blocks);
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

bool sm90_takes(const GramProblem& p, OutputType type) {
  const char* forced = std::getenv("GATEDOPS_CUDA");
  int device = 0, major = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess;
  return known && major == 9 && type != OutputType::kFloat64 && p.layers.count <= kMaxMappedLayers &&
         !(forced != nullptr && std::string_view(forced) == "sm80");
}

int launch_gram_sm90(const GramProblem& problem, bool symmetric, OutputType type, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  Sm90Problem p{};
  p.gram = problem;
  p.gram.schedule = schedule_of(problem, symmetric, Sm90Traits<float>::kTile);
  for (int l = 0; l < problem.layers.count && problem.x.rows > 0 && problem.y.rows > 0; ++l) {
    const Layer& layer = problem.layers.layer[l];
    if (!encode(problem.x, layer.x_first, layer.words, p.x[l]) ||
        !encode(problem.y, layer.y_first, layer.words, p.y[l])) {
      return cudaErrorInvalidValue;
    }
  }
  switch (type) {
    case OutputType::kFloat32:
      return launch<float, float>(p, 1, s);
    case OutputType::kBFloat16:
      return launch<float, __nv_bfloat16>(p, 1, s);
    case OutputType::kInt32:
      return launch<int32_t, int32_t>(p, problem.layers.count, s);
    case OutputType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace gatedops::cuda
