// The ops of the gram family that use a Gram without keeping it: npk_matvec, npk_gram_backward, gate_neighbors.
// npk_matvec contracts tiles inside the kernel. gate_neighbors selects from tiles inside the kernel; it takes all tiles
// of a row, and so both halves of a symmetric problem. For a gradient, for a Sigma that the kernels do not make, and
// for many neighbours, the kernel of npk_gram writes one panel of rows after the other, and torch multiplies or sorts
// it. All give the same bits on every run.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <tuple>

#include "core/kernel.h"
#include "run.h"

namespace gatedops::cuda {
namespace {

// Calls use(i, rows, panel arguments) for panels of rows. The other side is all of y, or of x if symmetric.
template <class Use>
void each_panel(const WholeArgs& args, const Use& use) {
  const int64_t step = panel_rows(args.m());
  for (int64_t i = 0; i < args.n(); i += step) {
    const int64_t rows = std::min(step, args.n() - i);
    WholeArgs panel = args;
    panel.words = slice_rows(args.words, i, rows);
    panel.y_words = args.y_words ? args.y_words : args.words;
    if (args.x) {
      panel.x = slice_rows(detached(*args.x), i, rows);
      panel.y = args.right();
    }
    use(i, rows, panel);
  }
}

// Gives a symmetric problem a y_first, so that its rows can be panels against all rows.
WholeArgs as_rectangle(WholeArgs args) {
  if (!args.y_words) {
    args.layers.y_first = args.layers.first;
  }
  return args;
}

Tensor npk_matvec(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const Tensor& v, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, std::vector<double> slope, std::vector<int64_t> widths) {
  const WholeArgs args = as_rectangle(WholeArgs(
      GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_sigma(x, y).with_slopes(slope, widths)));
  const GramProblem problem = gram_problem(args);
  args.require_right_factor(v, "v");
  require(v.size(1) <= INT32_MAX, "v: has more columns than int32 counts");
  require_float(v.scalar_type(), "v");
  require_device_of(words, v, "v");
  const DeviceGuard guard(words.get_device_index());
  Tensor out = torch::stable::new_zeros(detached(v), {args.n(), v.size(1)});
  if (args.n() == 0 || args.m() == 0 || v.size(1) == 0) {
    return out;
  }
  if (run_matvec(args, problem, torch::stable::contiguous(detached(v)), out)) {
    return out;
  }
  each_panel(args, [&](int64_t i, int64_t rows, const WholeArgs& part) {
    Tensor panel = torch::stable::new_empty(out, {rows, args.m()});
    run_gram(part, gram_problem(part), panel);
    mm(panel, detached(v), slice_rows(out, i, rows));
  });
  return out;
}

// Computes (G * Lambda) y, or ((G + G^T) * Lambda) y if y_words is absent, in G's dtype.
Tensor npk_gram_backward(
    const Tensor& grad, const Tensor& words, const Tensor& y, const std::optional<Tensor>& y_words,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale,
    std::vector<double> slope, std::vector<int64_t> widths) {
  const WholeArgs args = as_rectangle(
      WholeArgs(GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_slopes(slope, widths)));
  gram_problem(args);
  args.require_right_factor(y, "y");
  args.require_grad(grad);
  require_device_of(words, y, "y");
  require_device_of(words, grad, "grad");
  const DeviceGuard guard(words.get_device_index());
  const Tensor right = torch::stable::to(detached(y), grad.scalar_type());
  Tensor given = detached(grad);
  Tensor out = torch::stable::new_zeros(given, {args.n(), y.size(1)});
  if (args.m() == 0) {
    return out;
  }
  each_panel(args, [&](int64_t i, int64_t rows, const WholeArgs& part) {
    Tensor panel = torch::stable::new_empty(given, {rows, args.m()});
    torch::stable::copy_(panel, slice_rows(given, i, rows));
    if (!y_words) {
      const Tensor mirrored = torch::stable::transpose(torch::stable::narrow(given, 1, i, rows), 0, 1);
      panel = torch::stable::subtract(panel, mirrored, -1.0);
    }
    multiply_lambda(part, gram_problem(part), true, panel);
    mm(panel, right, slice_rows(out, i, rows));
  });
  return out;
}

// Returns the values of each row and their columns, largest first. Equal values are in the order of their columns.
std::tuple<Tensor, Tensor> sorted_descending(const Tensor& panel) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(panel), torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t{1}), torch::stable::detail::from(true)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// Returns the diagonal of t that begins at row 0, column `offset`.
Tensor diagonal_of(const Tensor& t, int64_t offset) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(t), torch::stable::detail::from(offset), torch::stable::detail::from(int64_t{0}),
      torch::stable::detail::from(int64_t{1})};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::diagonal", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void copy_best(const Tensor& sorted, Tensor out, int64_t k) {
  Tensor source = sorted;
  torch::stable::copy_(out, torch::stable::narrow(source, 1, 0, k));
}

std::tuple<Tensor, Tensor> gate_neighbors(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, int64_t k, ScalarType dtype, std::vector<double> slope,
    std::vector<int64_t> widths) {
  const WholeArgs args = as_rectangle(
      WholeArgs(GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_slopes(slope, widths)));
  const GramProblem problem = gram_problem(args);
  require_float(dtype, "dtype");
  args.require_neighbors(k);
  const DeviceGuard guard(words.get_device_index());
  Tensor values = torch::stable::new_empty(words, {args.n(), k}, dtype);
  Tensor indices = torch::stable::new_empty(words, {args.n(), k}, ScalarType::Long);
  if (args.n() == 0) {
    return {values, indices};
  }
  if (k <= kMaxNeighbors) {
    run_neighbors(args, problem, k, values, indices);
    return {values, indices};
  }
  each_panel(args, [&](int64_t i, int64_t rows, const WholeArgs& part) {
    Tensor panel = torch::stable::new_empty(words, {rows, args.m()}, dtype);
    multiply_lambda(part, gram_problem(part), false, panel);
    if (!y_words) {  // A row is not its own neighbour.
      Tensor itself = diagonal_of(panel, i);
      torch::stable::fill_(itself, -std::numeric_limits<double>::infinity());
    }
    const auto [sorted, order] = sorted_descending(panel);
    copy_best(sorted, slice_rows(values, i, rows), k);
    copy_best(order, slice_rows(indices, i, rows), k);
  });
  return {values, indices};
}

}  // namespace
}  // namespace gatedops::cuda

STABLE_TORCH_LIBRARY_IMPL(gatedops_cuda, CUDA, m) {
  m.impl("npk_matvec", GATEDOPS_KERNEL(gatedops::cuda::npk_matvec));
  m.impl("npk_gram_backward", GATEDOPS_KERNEL(gatedops::cuda::npk_gram_backward));
  m.impl("gate_neighbors", GATEDOPS_KERNEL(gatedops::cuda::gate_neighbors));
}
