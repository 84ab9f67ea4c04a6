// The launchers of the wgmma kernel, in clusters of two blocks and without clusters.

#include <cudaTypedefs.h>

#include "core/cuda/launch.h"
#include "launchers.h"
#include "select_neighbors.h"
#include "sm90_kernel.h"
#include "write_tile.h"

namespace gatedops::cuda {
namespace {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= alignof(CUtensorMap));

// cuTensorMapEncodeTiled belongs to the driver library. It is looked up at run time, so that nothing has to be linked.
PFN_cuTensorMapEncodeTiled_v12000 find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  const bool usable = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return usable ? reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function) : nullptr;
}

// Makes the map of words [first, first + words) of all rows. Its boxes are box_rows rows of one stage. Rows do not
// overlap (tensors.h). Returns false if that fails.
bool encode(const GateRows& gates, int32_t first, int32_t words, int box_rows, TensorMap& map) {
  static const auto encode_tiled = find_encode();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(words), static_cast<cuuint64_t>(gates.rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(row_stride(gates, words)) * 4};
  const cuuint32_t box[] = {kStageWords, static_cast<cuuint32_t>(box_rows)}, every[] = {1, 1};
  auto* start = const_cast<uint32_t*>(gates.words + first);
  return encode_tiled != nullptr &&
         encode_tiled(
             reinterpret_cast<CUtensorMap*>(&map), CU_TENSOR_MAP_DATA_TYPE_INT32, 2, start, sizes, strides, box, every,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

constexpr int kTile = Sm90Traits<float, 1>::kTile;
static_assert(kMaxMappedRows + 2 * kTile <= INT32_MAX, "a tile of a cluster begins inside int32 and ends there");

// Makes the maps of all layers and of Sigma. The caller fills in the schedule. Returns false if a map fails.
template <int kCluster>
bool encode_all(const GramProblem& problem, Sm90Problem& p) {
  constexpr int kSharedRows = Sm90Traits<float, kCluster>::kSharedRows;
  p.gram = problem;
  for (int l = 0; l < problem.layers.end() && problem.x.rows > 0 && problem.y.rows > 0; ++l) {
    const Layer& layer = problem.layers.layer[l];
    const bool sigma = problem.layers.is_sigma(l);
    if (!encode(sigma ? problem.sigma_x : problem.x, layer.x_first, layer.words, kTile, p.x[l]) ||
        !encode(sigma ? problem.sigma_y : problem.y, layer.y_first, layer.words, kSharedRows, p.y[l])) {
      return false;
    }
  }
  const int l = problem.layers.count;
  const int32_t words = problem.layers.layer[l].words;
  return problem.layers.sigma != SigmaOf::kFloats ||
         (encode(problem.sigma_x, 0, words, kTile, p.x[l]) && encode(problem.sigma_y, 0, words, kSharedRows, p.y[l]) &&
          encode(problem.sigma_x_rest, 0, words, kTile, p.x[l + 1]) &&
          encode(problem.sigma_y_rest, 0, words, kSharedRows, p.y[l + 1]));
}

template <class Product, int kCluster, class Finish>
cudaError_t launch(const Sm90Problem& p, int64_t planes, void* stream) {
  using Traits = Sm90Traits<Product, kCluster>;
  note_kernel(Traits::kCluster == 1 ? "sm90x1" : "sm90");
  const TileSchedule& squares = p.gram.schedule;
  const int64_t units = Finish::kByRows ? squares.rows : squares.tiles() * kCluster * planes;
  return launch_persistent<Traits>(gram_sm90<Traits, Finish>, p, units, 1, kCluster, static_cast<cudaStream_t>(stream));
}

template <int kCluster>
using Sm90Bands = Bands<float, kTile, kCluster>;

template <int kCluster>
int launch_gram(const GramProblem& problem, bool symmetric, OutputType type, void* stream) {
  Sm90Problem p{};
  if (!encode_all<kCluster>(problem, p)) {
    return cudaErrorInvalidValue;
  }
  p.gram.schedule = schedule_of(problem, symmetric, kTile * kCluster);
  switch (type) {
    case OutputType::kFloat32:
      return launch<float, kCluster, WriteTile<float>>(p, 1, stream);
    case OutputType::kBFloat16:
      return launch<float, kCluster, WriteTile<__nv_bfloat16>>(p, 1, stream);
    case OutputType::kInt32:
      return launch<int32_t, kCluster, WriteTile<int32_t>>(p, problem.layers.count, stream);
    case OutputType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

template <int kCluster>
int launch_neighbors(const GramProblem& problem, OutputType type, void* stream) {
  Sm90Problem p{};
  if (type != OutputType::kFloat32 || !encode_all<kCluster>(problem, p)) {
    return cudaErrorInvalidValue;
  }
  p.gram.schedule = schedule_of(problem, false, kTile * kCluster);
  return launch<float, kCluster, SelectNeighbors>(p, 1, stream);
}

template <int kCluster>
int64_t matvec_workspace(const MatvecCall& call, OutputType) {
  return Sm90Bands<kCluster>(call).workspace();
}

template <int kCluster>
int launch_matvec(const MatvecCall& call, OutputType type, void* workspace, void* stream) {
  Sm90Problem p{};
  if (type != OutputType::kFloat32 || !encode_all<kCluster>(call.problem, p)) {
    return cudaErrorInvalidValue;
  }
  const auto contract = [&](const GramProblem& band) {
    p.gram = band;
    return launch<float, kCluster, ContractTile>(p, 1, stream);
  };
  return Sm90Bands<kCluster>(call).run(
      workspace, contract, [&](const PartialSums& sums) { return launch_sums<float, kTile>(sums, stream); });
}

template <int kCluster>
constexpr GramLaunchers kLaunchers{
    true, launch_gram<kCluster>, launch_neighbors<kCluster>, matvec_workspace<kCluster>, launch_matvec<kCluster>};

}  // namespace

const GramLaunchers kSm90 = kLaunchers<2>, kSm90x1 = kLaunchers<1>;

}  // namespace gatedops::cuda
