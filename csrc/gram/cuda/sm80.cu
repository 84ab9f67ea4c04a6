// The launchers of the mma.sync kernel.
#include "core/cuda/launch.h"
#include "launchers.h"
#include "select_neighbors.h"
#include "sm80_kernel.h"
#include "write_tile.h"

namespace gatedops::cuda {
namespace {

template <class Product, class Finish>
cudaError_t launch(const GramProblem& p, int64_t planes, void* stream) {
  using Traits = Sm80Traits<Product>;
  note_kernel("sm80");
  const int64_t units = Finish::kByRows ? p.schedule.rows : p.schedule.tiles() * planes;
  return launch_persistent<Traits>(
      gram_sm80<Traits, Finish>, p, units, Traits::kBlocksPerMultiprocessor, 1, static_cast<cudaStream_t>(stream));
}

template <class Value>
constexpr int kTileOf = Sm80Traits<Value>::kTile;

template <class Value>
using Sm80Bands = Bands<Value, kTileOf<Value>, 1>;

template <class Value>
int launch_bands(const MatvecCall& call, void* workspace, void* stream) {
  return Sm80Bands<Value>(call).run(
      workspace, [&](const GramProblem& p) { return launch<Value, ContractTile>(p, 1, stream); },
      [&](const PartialSums& sums) { return launch_sums<Value, kTileOf<Value>>(sums, stream); });
}

int launch_gram(const GramProblem& problem, bool symmetric, OutputType type, void* stream) {
  GramProblem p = problem;
  p.schedule = schedule_of(p, symmetric, type == OutputType::kFloat64 ? kTileOf<double> : kTileOf<float>);
  switch (type) {
    case OutputType::kFloat32:
      return launch<float, WriteTile<float>>(p, 1, stream);
    case OutputType::kFloat64:
      return launch<double, WriteTile<double>>(p, 1, stream);
    case OutputType::kBFloat16:
      return launch<float, WriteTile<__nv_bfloat16>>(p, 1, stream);
    case OutputType::kInt32:
      return launch<int32_t, WriteTile<int32_t>>(p, p.layers.count, stream);
  }
  return cudaErrorInvalidValue;
}

int launch_neighbors(const GramProblem& problem, OutputType type, void* stream) {
  const bool wide = type == OutputType::kFloat64;
  GramProblem p = problem;
  p.schedule = schedule_of(p, false, wide ? kTileOf<double> : kTileOf<float>);
  return wide ? launch<double, SelectNeighbors>(p, 1, stream) : launch<float, SelectNeighbors>(p, 1, stream);
}

int64_t matvec_workspace(const MatvecCall& call, OutputType type) {
  return type == OutputType::kFloat64 ? Sm80Bands<double>(call).workspace() : Sm80Bands<float>(call).workspace();
}

int launch_matvec(const MatvecCall& call, OutputType type, void* workspace, void* stream) {
  return type == OutputType::kFloat64 ? launch_bands<double>(call, workspace, stream)
                                      : launch_bands<float>(call, workspace, stream);
}

}  // namespace

const GramLaunchers kSm80{false, launch_gram, launch_neighbors, matvec_workspace, launch_matvec};

}  // namespace gatedops::cuda
