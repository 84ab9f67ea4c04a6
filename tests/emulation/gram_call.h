// How Python calls an emulated Gram kernel: ctypes mirrors these structs (tests/emulated.py).
#pragma once

#include <string>

#include "cuda/gram_problem.h"
#include "emulated_gpu.h"

namespace emulation {

enum OutputType : int32_t { kFloat32, kFloat64, kBFloat16, kInt32 };

struct Launch {
  int32_t blocks;
  uint32_t seed;
};

struct GramCall {
  gatedops::cuda::GateRows x, y;
  int32_t symmetric, type;
  Launch launch;
  gatedops::cuda::GramOutput out;
  gatedops::cuda::LayerTable layers;
};

inline gatedops::cuda::GramProblem problem_of(const GramCall& call, int64_t tile) {
  return {
      call.x,
      call.y,
      {(call.x.rows + tile - 1) / tile, (call.y.rows + tile - 1) / tile, call.symmetric != 0},
      call.out,
      call.layers};
}

// One block after the other, as many as launch.blocks.
template <class Kernel>
void run_blocks(
    const gatedops::cuda::GramProblem& p, const Launch& launch, int threads, int shared_bytes, const Kernel& kernel) {
  gridDim.x = static_cast<unsigned>(launch.blocks);
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    Gpu gpu(threads, static_cast<size_t>(shared_bytes));
    for (const auto* rows : {&p.x, &p.y}) {
      gpu.readable.emplace_back(rows->words, static_cast<size_t>(rows->rows * rows->stride * 4));
    }
    Fibers(threads, launch.seed + blockIdx.x).run([&](int) { kernel(); });
  }
}

// Null, or what went wrong.
template <class Run>
const char* guarded(const Run& run) {
  static std::string message;
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace emulation
