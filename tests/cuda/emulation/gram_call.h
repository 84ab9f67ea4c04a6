// The structs by which Python calls an emulated Gram kernel. tests/helpers/emulated.py mirrors them with ctypes.
#pragma once

#include <string>

#include "emulated_gpu.h"
#include "gram/cuda/contract_tile.h"

namespace emulation {

using gatedops::cuda::GramProblem;
using gatedops::cuda::PartialSums;

enum OutputType : int32_t { kFloat32, kFloat64, kBFloat16, kInt32 };

struct Launch {
  int32_t blocks;
  uint32_t seed;
};

// A call of a kernel. If columns > 0, the Gram times v, contiguous (m, columns), goes to out, and its partial products
// take at most `bytes` bytes. If neighbors.k > 0, the largest values of each row are found.
struct GramCall {
  gatedops::cuda::GateRows x, y, sigma_x, sigma_y, sigma_x_rest, sigma_y_rest;
  int32_t symmetric, type;
  Launch launch;
  gatedops::cuda::GramOutput out;
  const void* v;
  int64_t columns, bytes;
  gatedops::cuda::Neighbors neighbors;
  gatedops::cuda::LayerTable layers;
};

inline GramProblem problem_of(const GramCall& call, int64_t edge) {
  GramProblem p{};
  p.x = call.x;
  p.y = call.y;
  p.sigma_x = call.sigma_x;
  p.sigma_y = call.sigma_y;
  p.sigma_x_rest = call.sigma_x_rest;
  p.sigma_y_rest = call.sigma_y_rest;
  p.out = call.out;
  p.neighbors = call.neighbors;
  p.layers = call.layers;
  p.schedule = gatedops::cuda::schedule_of(p, call.symmetric != 0 && call.neighbors.k == 0, edge);
  p.contraction.v = call.v;
  p.contraction.columns = static_cast<int32_t>(call.columns);
  return p;
}

inline size_t bytes_of(const gatedops::cuda::GateRows& gates) {
  return static_cast<size_t>(gates.rows * gates.stride * 4);
}

// Runs one cluster of blocks after the other: launch.blocks blocks, rounded up to whole clusters.
template <class Kernel>
void run_blocks(
    const GramProblem& p, const Launch& launch, int threads, int shared_bytes, int cluster, const Kernel& kernel) {
  gridDim.x = static_cast<unsigned>((launch.blocks + cluster - 1) / cluster * cluster);
  Cluster::block_threads = threads;
  for (unsigned first = 0; first < gridDim.x; first += static_cast<unsigned>(cluster)) {
    std::vector<Gpu> blocks;
    blocks.reserve(static_cast<size_t>(cluster));
    Gpu::cluster.clear();
    for (int rank = 0; rank < cluster; ++rank) {
      Gpu& gpu = blocks.emplace_back(threads, static_cast<size_t>(shared_bytes));
      for (const auto* rows : {&p.x, &p.y, &p.sigma_x, &p.sigma_y, &p.sigma_x_rest, &p.sigma_y_rest}) {
        gpu.readable.emplace_back(rows->words, bytes_of(*rows));
      }
      Gpu::cluster.push_back(&gpu);
    }
    Cluster::first_block = first;
    Fibers(threads * cluster, launch.seed + first).run([&](int) { kernel(); });
  }
}

// Computes a Gram times v as csrc/gram/cuda/matvec_bands.h does. contract(problem) runs the contracting kernel.
template <class Value, int kTile, int kSquare, class Contract>
void run_matvec(const GramCall& call, const Contract& contract) {
  const gatedops::cuda::MatvecCall matvec{problem_of(call, kTile), call.symmetric != 0, call.out.data, call.bytes};
  const gatedops::cuda::Bands<Value, kTile, kSquare> bands(matvec);
  // The workspace is full of NaNs at first.
  std::vector<unsigned char> workspace(static_cast<size_t>(bands.workspace()), 0xff);
  const auto add_up = [&](const PartialSums& sums) {
    using Sum = gatedops::cuda::PartialSum<Value, kTile>;
    run_blocks(matvec.problem, call.launch, Sum::kThreads, Sum::kSharedBytes, 1, [&] {
      gatedops::cuda::sum_partials<Value, kTile>(sums);
    });
    return 0;
  };
  bands.run(
      workspace.data(),
      [&](const GramProblem& p) {
        contract(p);
        return 0;
      },
      add_up);
}

// Returns null, or a message that says what went wrong.
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
