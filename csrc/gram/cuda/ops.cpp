// The ops of the gram family on NVIDIA GPUs that return what they compute of each pair or row: npk_gram, npk_gram_out,
// npk_diag, gate_overlap. The kernels make a Sigma of bytes. A Sigma of floats is made by the wgmma kernel, or by torch
// into the output, where the kernel then multiplies it tile by tile (docs/math.md, section 3).
#include <torch/csrc/stable/library.h>

#include "core/kernel.h"
#include "gram/measure.h"
#include "run.h"

namespace gatedops::cuda {
namespace {

Tensor npk_gram(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const std::optional<Tensor>& factor, const std::optional<Tensor>& y_factor,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    ScalarType dtype, std::vector<double> slope, std::vector<int64_t> widths) {
  const WholeArgs args(
      GramArgs::lambda(words, y_words, {first, y_first, count}, scale)
          .with_sigma(x, y)
          .with_factors(factor, y_factor)
          .with_slopes(slope, widths));
  const GramProblem problem = gram_problem(args);
  output_type(dtype, "dtype");
  const DeviceGuard guard(words.get_device_index());
  Tensor out = torch::stable::new_empty(words, {args.n(), args.m()}, dtype);
  run_gram(args, problem, out);
  return out;
}

void npk_gram_out(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const std::optional<Tensor>& factor, const std::optional<Tensor>& y_factor,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    std::vector<double> slope, std::vector<int64_t> widths, Tensor out) {
  const WholeArgs args(
      GramArgs::lambda(words, y_words, {first, y_first, count}, scale)
          .with_sigma(x, y)
          .with_factors(factor, y_factor)
          .with_slopes(slope, widths));
  const GramProblem problem = gram_problem(args);
  require_device_of(words, out, "out");
  output_type(out.scalar_type(), "out");
  args.require_out(out);
  const DeviceGuard guard(words.get_device_index());
  run_gram(args, problem, out);
}

Tensor npk_diag(
    const Tensor& words, std::vector<int64_t> first, std::vector<int64_t> count, std::vector<double> scale,
    ScalarType dtype, std::vector<double> slope, std::vector<int64_t> widths) {
  const WholeArgs args(GramArgs::lambda(words, {}, {first, first, count}, scale).with_slopes(slope, widths));
  const GramProblem problem = gram_problem(args);
  require_float(dtype, "dtype");
  const DeviceGuard guard(words.get_device_index());
  Tensor out = torch::stable::new_empty(words, {words.size(0)}, dtype);
  require_launched(
      launch_diagonal(
          problem.x, problem.layers, output_type(dtype, "dtype"), out.mutable_data_ptr(), current_stream(words)),
      "npk_diag");
  return out;
}

// Counts the gates that are on in each layer and row, (L, n).
Tensor row_counts(const Tensor& words, const GateRows& gates, const LayerTable& layers) {
  Tensor counts = torch::stable::new_empty(words, {layers.count, gates.rows}, ScalarType::Int);
  auto* data = static_cast<int32_t*>(counts.mutable_data_ptr());
  require_launched(launch_row_counts(gates, layers, data, current_stream(words)), "gate_overlap");
  return counts;
}

Tensor gate_overlap(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<int64_t> widths, std::string measure) {
  const WholeArgs args(GramArgs::counts(words, y_words, {first, y_first, count}));
  args.require_widths(widths);
  const Measure counted = measure_of(measure);
  GramProblem problem = gram_problem(args, widths);
  const DeviceGuard guard(words.get_device_index());
  Tensor out = torch::stable::new_empty(words, {problem.layers.count, args.n(), args.m()}, ScalarType::Int);
  problem.out.data = out.mutable_data_ptr();
  problem.out.row_stride = args.m();
  problem.out.plane_stride = args.n() * args.m();
  // These must live until the launch.
  std::optional<Tensor> x_on, y_on;
  if (counted != Measure::kBoth) {
    problem.out.differ = counted == Measure::kDiffer;
    x_on = row_counts(words, problem.x, problem.layers);
    y_on = y_words ? row_counts(*y_words, problem.y, right_layers(problem.layers)) : *x_on;
    problem.out.x_on = static_cast<const int32_t*>(x_on->const_data_ptr());
    problem.out.y_on = static_cast<const int32_t*>(y_on->const_data_ptr());
  }
  launch_gram(problem, !y_words, OutputType::kInt32, words, "gate_overlap");
  return out;
}

// gatedops/backends/cuda_library.py reads this text from the file of the library.
#define GATEDOPS_TEXT(...) #__VA_ARGS__
#define GATEDOPS_TEXT_OF(...) GATEDOPS_TEXT(__VA_ARGS__)
__attribute__((used)) const char kBuiltFor[] =
    "gatedops._C_cuda for " GATEDOPS_TEXT_OF(GATEDOPS_ARCHITECTURES) " from " GATEDOPS_TEXT_OF(
        GATEDOPS_SOURCES) ", nvcc " GATEDOPS_TEXT_OF(__CUDACC_VER_MAJOR__) "." GATEDOPS_TEXT_OF(__CUDACC_VER_MINOR__);

}  // namespace
}  // namespace gatedops::cuda

STABLE_TORCH_LIBRARY_IMPL(gatedops_cuda, CUDA, m) {
  m.impl("npk_gram", GATEDOPS_KERNEL(gatedops::cuda::npk_gram));
  m.impl("npk_gram_out", GATEDOPS_KERNEL(gatedops::cuda::npk_gram_out));
  m.impl("npk_diag", GATEDOPS_KERNEL(gatedops::cuda::npk_diag));
  m.impl("gate_overlap", GATEDOPS_KERNEL(gatedops::cuda::gate_overlap));
}
