// Runs the kernel of csrc/cuda/gram_sm90_kernel.h on the CPU.
#include "cuda/gram_sm90_kernel.h"

#include "gram_call.h"

namespace {

using gatedops::cuda::GateRows;
using gatedops::cuda::Sm90Problem;
using gatedops::cuda::TensorMap;

TensorMap map_of(const GateRows& gates, int32_t first, int32_t words, int rows) {
  const auto* base = reinterpret_cast<const unsigned char*>(gates.words + first);
  return {base, words, gates.rows, gates.stride * 4, gatedops::cuda::kStageWords, rows, {}};
}

template <class Product, class Out>
void run(const emulation::GramCall& call) {
  using Traits = gatedops::cuda::Sm90Traits<Product>;
  Sm90Problem problem{};
  problem.gram = emulation::problem_of(call, Traits::kTile);
  for (int l = 0; l < call.layers.count; ++l) {
    const auto& layer = call.layers.layer[l];
    problem.x[l] = map_of(call.x, layer.x_first, layer.words, Traits::kTile);
    problem.y[l] = map_of(call.y, layer.y_first, layer.words, Traits::kTile);
  }
  emulation::run_blocks(problem.gram, call.launch, Traits::kThreads, Traits::kSharedBytes, [&] {
    gatedops::cuda::gram_sm90<Traits, Out>(problem);
  });
}

}  // namespace

extern "C" const char* emulate_gram_sm90(const emulation::GramCall* call) {
  return emulation::guarded([&] {
    switch (call->type) {
      case emulation::kFloat32:
        return run<float, float>(*call);
      case emulation::kBFloat16:
        return run<float, __nv_bfloat16>(*call);
      case emulation::kInt32:
        return run<int32_t, int32_t>(*call);
      default:
        throw std::invalid_argument("float64 is the other kernel's");
    }
  });
}
