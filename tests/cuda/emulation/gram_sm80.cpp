// Runs the kernel of csrc/gram/cuda/sm80_kernel.h on the CPU.
#include "gram/cuda/sm80_kernel.h"

#include "gram/cuda/select_neighbors.h"
#include "gram/cuda/write_tile.h"
#include "gram_call.h"

namespace {

using gatedops::cuda::ContractTile;
using gatedops::cuda::GramProblem;
using gatedops::cuda::SelectNeighbors;
using gatedops::cuda::Sm80Traits;
using gatedops::cuda::WriteTile;

template <class Product, class Finish>
void run(const GramProblem& problem, const emulation::Launch& launch) {
  using Traits = Sm80Traits<Product>;
  emulation::run_blocks(problem, launch, Traits::kThreads, Traits::kSharedBytes, 1, [&] {
    gatedops::cuda::gram_sm80<Traits, Finish>(problem);
  });
}

template <class Product, class Out>
void write(const emulation::GramCall& call) {
  run<Product, WriteTile<Out>>(emulation::problem_of(call, Sm80Traits<Product>::kTile), call.launch);
}

template <class Value>
void contract(const emulation::GramCall& call) {
  emulation::run_matvec<Value, Sm80Traits<Value>::kTile, 1>(
      call, [&](const GramProblem& p) { run<Value, ContractTile>(p, call.launch); });
}

template <class Value>
void select(const emulation::GramCall& call) {
  run<Value, SelectNeighbors>(emulation::problem_of(call, Sm80Traits<Value>::kTile), call.launch);
}

}  // namespace

extern "C" const char* emulate_gram_sm80(const emulation::GramCall* call) {
  return emulation::guarded([&] {
    if (call->columns > 0) {
      return call->type == emulation::kFloat64 ? contract<double>(*call) : contract<float>(*call);
    }
    if (call->neighbors.k > 0) {
      return call->type == emulation::kFloat64 ? select<double>(*call) : select<float>(*call);
    }
    switch (call->type) {
      case emulation::kFloat32:
        return write<float, float>(*call);
      case emulation::kFloat64:
        return write<double, double>(*call);
      case emulation::kBFloat16:
        return write<float, __nv_bfloat16>(*call);
      default:
        return write<int32_t, int32_t>(*call);
    }
  });
}

// Returns Sigma as float32, from the sum that a tensor core gathers for `products` pairs of bytes of 255.
extern "C" float sigma_of_largest_bytes(uint32_t products) {
  const int32_t seed = gatedops::cuda::kCountSeed<float>;
  const int32_t gathered[] = {static_cast<int32_t>(static_cast<uint32_t>(seed) + products * 255 * 255)};
  float product[] = {1.0f};
  gatedops::cuda::close_sigma(gathered, product);
  return product[0];
}

extern "C" int64_t max_sigma_columns() {
  return gatedops::cuda::kMaxSigmaColumns;
}
