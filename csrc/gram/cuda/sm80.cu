// Launchers of the mma.sync kernel.
#include "core/cuda/launch.h"
#include "launch.h"
#include "sm80_kernel.h"
#include "tile_neighbors.h"
#include "tile_output.h"

namespace gatedops::cuda {
namespace {

template <class Product, class Finish>
cudaError_t launch(const GramProblem& p, int64_t planes, cudaStream_t stream) {
  using Traits = Sm80Traits<Product>;
  note_kernel("sm80");
  const int64_t units = Finish::kByRows ? p.schedule.rows : p.schedule.tiles() * planes;
  return launch_persistent<Traits>(gram_sm80<Traits, Finish>, p, units, Traits::kBlocksPerMultiprocessor, 1, stream);
}

template <class Value>
using Sm80Bands = Bands<Value, Sm80Traits<Value>::kTile, 1>;

template <class Value>
int launch_matvec(const MatvecCall& call, void* workspace, cudaStream_t stream) {
  return Sm80Bands<Value>(call).run(
      workspace, [&](const GramProblem& p) { return launch<Value, ContractTile>(p, 1, stream); },
      [&](const PartialSums& sums) { return launch_sums<Value, Sm80Traits<Value>::kTile>(sums, stream); });
}

}  // namespace

int launch_gram_sm80(GramProblem p, bool symmetric, OutputType type, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  p.schedule =
      schedule_of(p, symmetric, type == OutputType::kFloat64 ? Sm80Traits<double>::kTile : Sm80Traits<float>::kTile);
  switch (type) {
    case OutputType::kFloat32:
      return launch<float, WriteTile<float>>(p, 1, s);
    case OutputType::kFloat64:
      return launch<double, WriteTile<double>>(p, 1, s);
    case OutputType::kBFloat16:
      return launch<float, WriteTile<__nv_bfloat16>>(p, 1, s);
    case OutputType::kInt32:
      return launch<int32_t, WriteTile<int32_t>>(p, p.layers.count, s);
  }
  return cudaErrorInvalidValue;
}

int launch_neighbors_sm80(GramProblem p, OutputType type, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  const bool wide = type == OutputType::kFloat64;
  p.schedule = schedule_of(p, false, wide ? Sm80Traits<double>::kTile : Sm80Traits<float>::kTile);
  return wide ? launch<double, SelectNeighbors>(p, 1, s) : launch<float, SelectNeighbors>(p, 1, s);
}

int64_t matvec_workspace_sm80(const MatvecCall& call, OutputType type) {
  return type == OutputType::kFloat64 ? Sm80Bands<double>(call).workspace() : Sm80Bands<float>(call).workspace();
}

int launch_matvec_sm80(const MatvecCall& call, OutputType type, void* workspace, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return type == OutputType::kFloat64 ? launch_matvec<double>(call, workspace, s)
                                      : launch_matvec<float>(call, workspace, s);
}

}  // namespace gatedops::cuda
