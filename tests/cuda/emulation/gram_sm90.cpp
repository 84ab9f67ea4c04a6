// Runs the kernel of csrc/gram/cuda/sm90_kernel.h on the CPU, in clusters of two blocks and without clusters.
#include "gram/cuda/sm90_kernel.h"

#include "gram/cuda/select_neighbors.h"
#include "gram/cuda/sm90_block.h"
#include "gram_call.h"

namespace {

using gatedops::cuda::ContractTile;
using gatedops::cuda::GateRows;
using gatedops::cuda::GramProblem;
using gatedops::cuda::SelectNeighbors;
using gatedops::cuda::Sm90Problem;
using gatedops::cuda::Sm90Traits;
using gatedops::cuda::TensorMap;
using gatedops::cuda::WriteTile;

TensorMap map_of(const GateRows& gates, int32_t first, int32_t words, int rows) {
  const auto* base = reinterpret_cast<const unsigned char*>(gates.words + first);
  return {base, words, gates.rows, gatedops::cuda::row_stride(gates, words) * 4, gatedops::cuda::kStageWords, rows, {}};
}

template <class Traits, class Finish>
void run(const GramProblem& gram, const emulation::Launch& launch) {
  Sm90Problem problem{};
  problem.gram = gram;
  for (int l = 0; l < gram.layers.end(); ++l) {
    const auto& layer = gram.layers.layer[l];
    const bool sigma = gram.layers.is_sigma(l);
    problem.x[l] = map_of(sigma ? gram.sigma_x : gram.x, layer.x_first, layer.words, Traits::kTile);
    problem.y[l] = map_of(sigma ? gram.sigma_y : gram.y, layer.y_first, layer.words, Traits::kSharedRows);
  }
  if (const int l = gram.layers.count; gram.layers.sigma == gatedops::cuda::SigmaOf::kFloats) {
    const int32_t words = gram.layers.layer[l].words;
    problem.x[l] = map_of(gram.sigma_x, 0, words, Traits::kTile);
    problem.y[l] = map_of(gram.sigma_y, 0, words, Traits::kSharedRows);
    problem.x[l + 1] = map_of(gram.sigma_x_rest, 0, words, Traits::kTile);
    problem.y[l + 1] = map_of(gram.sigma_y_rest, 0, words, Traits::kSharedRows);
  }
  emulation::run_blocks(gram, launch, Traits::kThreads, Traits::kSharedBytes, Traits::kCluster, [&] {
    gatedops::cuda::gram_sm90<Traits, Finish>(problem);
  });
}

template <class Traits, class Out>
void write(const emulation::GramCall& call) {
  run<Traits, WriteTile<Out>>(emulation::problem_of(call, Traits::kTile * Traits::kCluster), call.launch);
}

template <class Traits>
void contract(const emulation::GramCall& call) {
  emulation::run_matvec<float, Traits::kTile, Traits::kCluster>(
      call, [&](const GramProblem& p) { run<Traits, ContractTile>(p, call.launch); });
}

template <int kCluster>
const char* emulate(const emulation::GramCall& call) {
  using Floats = Sm90Traits<float, kCluster>;
  return emulation::guarded([&] {
    if (call.columns > 0 && call.type == emulation::kFloat32) {
      return contract<Floats>(call);
    }
    if (call.neighbors.k > 0 && call.type == emulation::kFloat32) {
      return run<Floats, SelectNeighbors>(emulation::problem_of(call, Floats::kTile * kCluster), call.launch);
    }
    switch (call.type) {
      case emulation::kFloat32:
        return write<Floats, float>(call);
      case emulation::kBFloat16:
        return write<Floats, __nv_bfloat16>(call);
      case emulation::kInt32:
        return write<Sm90Traits<int32_t, kCluster>, int32_t>(call);
      default:
        throw std::invalid_argument("float64 is the other kernel's");
    }
  });
}

}  // namespace

extern "C" const char* emulate_gram_sm90(const emulation::GramCall* call) {
  return emulate<2>(*call);
}

extern "C" const char* emulate_gram_sm90x1(const emulation::GramCall* call) {
  return emulate<1>(*call);
}
