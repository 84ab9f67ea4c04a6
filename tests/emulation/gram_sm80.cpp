// Runs the kernel of csrc/cuda/gram_sm80_kernel.h on the CPU.
#include "gram_call.h"

#include "cuda/gram_sm80_kernel.h"

namespace {

template <class Product, class Out>
void run(const gatedops::cuda::GramProblem& problem, const emulation::Launch& launch) {
  using Traits = gatedops::cuda::Sm80Traits<Product>;
  emulation::run_blocks(problem, launch, Traits::kThreads, Traits::kSharedBytes, [&] {
    gatedops::cuda::gram_sm80<Traits, Out>(problem);
  });
}

}  // namespace

extern "C" const char* emulate_gram_sm80(const emulation::GramCall* call) {
  return emulation::guarded([&] {
    const auto problem = [&](auto product) {
      return emulation::problem_of(*call, gatedops::cuda::Sm80Traits<decltype(product)>::kTile);
    };
    switch (call->type) {
      case emulation::kFloat32:
        return run<float, float>(problem(0.0f), call->launch);
      case emulation::kFloat64:
        return run<double, double>(problem(0.0), call->launch);
      case emulation::kBFloat16:
        return run<float, __nv_bfloat16>(problem(0.0f), call->launch);
      default:
        return run<int32_t, int32_t>(problem(0), call->launch);
    }
  });
}
