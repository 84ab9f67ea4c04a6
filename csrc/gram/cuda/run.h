// One Gram, or its product with v, from its arguments: Sigma, the choice of a kernel, the launch.
#pragma once

#include "tensors.h"

namespace gatedops::cuda {

inline void launch_gram(
    const GramProblem& problem, bool symmetric, OutputType type, const Tensor& words, const char* op) {
  void* stream = current_stream(words);
  const bool wgmma = sm90_takes(problem, type);
  const int error =
      wgmma ? launch_gram_sm90(problem, symmetric, type, stream) : launch_gram_sm80(problem, symmetric, type, stream);
  require_launched(error, op);
}

// Rows of y seen as rows of x.
inline LayerTable right_layers(LayerTable table) {
  for (int l = 0; l < table.count; ++l) {
    table.layer[l].x_first = table.layer[l].y_first;
  }
  return table;
}

// out = [out *] Lambda, rows and columns scaled; problem as of gram_problem(args).
inline void multiply_lambda(const GramArgs& args, GramProblem problem, bool times, Tensor& out) {
  problem.out.data = out.mutable_data_ptr();
  problem.out.row_stride = out.stride(0);
  problem.out.times = times;
  std::optional<Tensor> factor, y_factor;  // alive until the launch
  if (args.factor) {
    factor = torch::stable::contiguous(detached(*args.factor));
    y_factor = args.y_factor ? torch::stable::contiguous(detached(*args.y_factor)) : *factor;
    problem.out.factor = static_cast<const double*>(factor->const_data_ptr());
    problem.out.y_factor = static_cast<const double*>(y_factor->const_data_ptr());
  }
  launch_gram(problem, !args.y_words, output_type(out.scalar_type(), "out"), args.words, "npk_gram");
}

inline void run_gram(const GramArgs& args, GramProblem problem, Tensor& out) {
  if (args.n() == 0 || args.m() == 0) {
    return;
  }
  const FusedSigma sigma(args, output_type(out.scalar_type(), "out"), problem);
  const bool given = args.x.has_value() && problem.layers.sigma == SigmaOf::kNothing;
  if (given) {
    sigma_into(*args.x, args.right(), out);
  }
  multiply_lambda(args, problem, given, out);
}

// out = the Gram times v, both contiguous and of one dtype, float32 or float64. False, and nothing done, where the
// kernels do not make Sigma.
inline bool run_matvec(const GramArgs& args, GramProblem problem, const Tensor& v, Tensor& out) {
  const OutputType type = output_type(v.scalar_type(), "v");
  const FusedSigma sigma(args, type, problem);
  if (args.x && problem.layers.sigma == SigmaOf::kNothing) {
    return false;
  }
  problem.contraction.v = v.const_data_ptr();
  problem.contraction.columns = static_cast<int32_t>(v.size(1));
  const MatvecCall call{problem, !args.y_words, out.mutable_data_ptr(), kPartialBytes};
  const bool wgmma = sm90_takes(problem, type);
  const int64_t size = wgmma ? matvec_workspace_sm90(call) : matvec_workspace_sm80(call, type);
  Tensor workspace = torch::stable::new_empty(v, {size}, ScalarType::Byte);
  void* stream = current_stream(v);
  const int error = wgmma ? launch_matvec_sm90(call, workspace.mutable_data_ptr(), stream)
                          : launch_matvec_sm80(call, type, workspace.mutable_data_ptr(), stream);
  require_launched(error, "npk_matvec");
  return true;
}

// The k largest values of Lambda in each row, k <= kMaxNeighbors; symmetric: a row is not its own neighbour.
inline void run_neighbors(const GramArgs& args, GramProblem problem, int64_t k, Tensor& values, Tensor& indices) {
  problem.neighbors = {
      values.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr()), static_cast<int32_t>(k),
      !args.y_words};
  const OutputType type = output_type(values.scalar_type(), "dtype");
  void* stream = current_stream(values);
  const int error =
      sm90_takes(problem, type) ? launch_neighbors_sm90(problem, stream) : launch_neighbors_sm80(problem, type, stream);
  require_launched(error, "gate_neighbors");
}

}  // namespace gatedops::cuda
