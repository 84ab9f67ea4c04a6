// gate_overlap: counts exactly, layer by layer, the gates that are on for both rows of a pair, that agree, or that
// differ. The last two follow from the first and from the gates that are on in each row.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "core/cpu/output.h"
#include "core/kernel.h"
#include "gram/measure.h"
#include "problem.h"

namespace gatedops::cpu {
namespace {

struct CountBuffers {
  explicit CountBuffers(const GramProblem& p)
      : counts(static_cast<size_t>(p.edge) * kTileStride),
        panel(static_cast<size_t>(p.edge) * p.packed_stride()),
        work(p.kernels.workspace) {}
  std::vector<int32_t> counts;
  std::vector<uint32_t> panel;
  Workspace work;
};

struct CountOutput {
  int32_t* data;
  int64_t rows, cols;
  bool stream;
  int32_t* at(int layer, int64_t i, int64_t j) const {
    return data + (layer * rows + i) * cols + j;
  }
};

// The stores of float32 store the int32 counts: both have the same width, and the stores do not change bits.
void store_counts(
    const TileKernels& k, const TileRect& tile, bool symmetric, int layer, int32_t* counts, const CountOutput& out) {
  if (tile.diagonal) {
    mirror(tile, counts);
  }
  const auto* bits = reinterpret_cast<const float*>(counts);
  auto* direct = reinterpret_cast<float*>(out.at(layer, tile.i, tile.j));
  k.store_f32(bits, tile.rows, tile.cols, direct, out.cols, out.stream);
  if (symmetric && !tile.diagonal) {
    auto* mirrored = reinterpret_cast<float*>(out.at(layer, tile.j, tile.i));
    k.store_transposed_f32(bits, tile.rows, tile.cols, mirrored, out.cols, out.stream);
  }
}

struct OverlapCall {
  const GramProblem& problem;
  const Selection& layers;
  const std::vector<int64_t>& widths;
  Measure measure;
};

// Turns the counts of gates that are on in both rows into counts of gates that agree or differ, in one layer.
void count_measure(const OverlapCall& call, const TileRect& tile, int layer, int32_t* counts) {
  const GramProblem& p = call.problem;
  const Selection& s = call.layers;
  const TileKernels& k = active_kernels<TileKernels>();
  int32_t x_on[kTile], y_on[kTile];
  for (int i = 0; i < tile.rows; ++i) {
    k.row_counts(p.x.row(tile.i + i), &s.first[layer], &s.count[layer], 1, x_on + i);
  }
  for (int j = 0; j < tile.cols; ++j) {
    k.row_counts(p.y.row(tile.j + j), &s.y_first[layer], &s.count[layer], 1, y_on + j);
  }
  const auto replace = [&](auto of_differing) {
    for (int i = 0; i < tile.rows; ++i) {
      for (int j = 0; j < tile.cols; ++j) {
        int32_t& count = counts[i * kTileStride + j];
        count = of_differing(x_on[i] + y_on[j] - 2 * count);
      }
    }
  };
  if (call.measure == Measure::kAgree) {
    const auto width = static_cast<int32_t>(call.widths[layer]);
    replace([width](int32_t differing) { return width - differing; });
  } else {
    replace([](int32_t differing) { return differing; });
  }
}

void count_tile(const OverlapCall& call, const TileRect& tile, CountBuffers& b, const CountOutput& out) {
  const GramProblem& p = call.problem;
  const TileKernels& k = p.kernels;
  for (const PieceRange& panel : p.panels) {
    for (const LayerPiece* piece = panel.begin; piece != panel.end; ++piece) {
      const auto one = PieceRange::only(piece, static_cast<int>(piece - p.pieces.data()));
      k.pack_panel(p.y.block(tile.j, tile.cols), one, b.panel.data());
      k.count(
          p.x.block(tile.i, tile.rows), b.panel.data(), tile.cols, one, tile.diagonal, b.counts.data(),
          b.work.aligned());
      if (piece->closes && call.measure != Measure::kBoth) {
        count_measure(call, tile, piece->layer, b.counts.data());
      }
      if (piece->closes) {
        store_counts(k, tile, p.symmetric, piece->layer, b.counts.data(), out);
      }
    }
  }
}

Tensor gate_overlap(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<int64_t> widths, std::string measure) {
  const GramArgs args = GramArgs::counts(words, y_words, {first, y_first, count});
  args.require_valid();
  args.require_widths(widths);
  const auto layers = static_cast<int64_t>(count.size());
  Tensor out = new_output(words, {layers, args.n(), args.m()}, ScalarType::Int);
  const bool stream = layers * args.n() * args.m() * static_cast<int64_t>(sizeof(int32_t)) > kStreamBytes;
  CountOutput output{};
  output.data = static_cast<int32_t*>(out.mutable_data_ptr());
  output.rows = args.n();
  output.cols = args.m();
  output.stream = stream;
  const GramProblem problem(args);
  const OverlapCall call{problem, args.layers, widths, measure_of(measure)};
  std::vector<CountBuffers> buffers;
  for (int64_t w = 0; w < workers(); ++w) {
    buffers.emplace_back(problem);
  }
  run_tasks(
      problem.tiles(), [&](int64_t worker, int64_t t) { count_tile(call, problem.tile(t), buffers[worker], output); });
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gate_overlap", GATEDOPS_KERNEL(gatedops::cpu::gate_overlap));
}
