// One Gram from its arguments: Sigma, the choice of a kernel, the launch.
#pragma once

#include "gram_tensors.h"

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

inline void run_gram(const GramArgs& args, const GramProblem& problem, Tensor& out) {
  if (args.n() == 0 || args.m() == 0) {
    return;
  }
  if (args.x) {
    sigma_into(*args.x, args.right(), out);
  }
  multiply_lambda(args, problem, args.x.has_value(), out);
}

}  // namespace gatedops::cuda
