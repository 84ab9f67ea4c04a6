// gate_overlap: exact counts of the gates that are on for both rows of a pair, layer by layer.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "../kernel.h"
#include "gram_args.h"
#include "gram_problem.h"

namespace gatedops::cpu {
namespace {

struct CountOutput {
  int32_t* data;
  int64_t rows, cols;
  int32_t* at(int layer, int64_t i, int64_t j) const { return data + (layer * rows + i) * cols + j; }
};

// int32 counts travel through the float32 stores: same width, bits untouched.
void store_counts(const TileKernels& k, const TileRect& tile, bool symmetric, int layer, int32_t* counts,
                  const CountOutput& out) {
  if (tile.diagonal) {
    mirror(tile, counts);
  }
  const auto* bits = reinterpret_cast<const float*>(counts);
  auto* direct = reinterpret_cast<float*>(out.at(layer, tile.i, tile.j));
  k.store_f32(bits, tile.rows, tile.cols, direct, out.cols, false);
  if (symmetric && !tile.diagonal) {
    auto* mirrored = reinterpret_cast<float*>(out.at(layer, tile.j, tile.i));
    k.store_transposed_f32(bits, tile.rows, tile.cols, mirrored, out.cols, false);
  }
}

void count_tile(const GramProblem& p, const TileRect& tile, TileBuffers<float>& b, const CountOutput& out) {
  const TileKernels& k = tile_kernels();
  for (const PieceRange& panel : p.panels) {
    for (const LayerPiece* piece = panel.begin; piece != panel.end; ++piece) {
      const PieceRange one{piece, piece + 1};
      k.pack_panel(p.y.block(tile.j, tile.cols), one, b.panel.data());
      k.count(p.x.block(tile.i, tile.rows), b.panel.data(), tile.cols, one, tile.diagonal, b.counts.data());
      if (piece->closes) {
        store_counts(k, tile, p.symmetric, piece->layer, b.counts.data(), out);
      }
    }
  }
}

Tensor gate_overlap(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first,
    std::vector<int64_t> y_first, std::vector<int64_t> count) {
  const GramArgs args{{}, words, {}, y_words, {first, y_first, count}, std::vector<double>(count.size(), 1.0)};
  args.require_valid();
  const auto layers = static_cast<int64_t>(count.size());
  Tensor out = torch::stable::new_empty(words, {layers, args.n(), args.m()}, ScalarType::Int);
  const CountOutput output{static_cast<int32_t*>(out.mutable_data_ptr()), args.n(), args.m()};
  const GramProblem problem(words, y_words, args.layers);
  auto buffers = worker_buffers<float>(problem, nullptr);
  run_tasks(problem.tiles(), [&](int64_t worker, int64_t t) {
    count_tile(problem, problem.tile(t), buffers[worker], output);
  });
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gate_overlap", GATEDOPS_KERNEL(gatedops::cpu::gate_overlap));
}
