// gated_linear, gated_linear_relu, gated_linear_soft and their derivatives. Each calls torch's matrix products, and
// gates a product in one pass over it.
#include <torch/csrc/stable/library.h>

#include "backward.h"
#include "core/kernel.h"
#include "forward.h"

namespace gatedops::cpu {
namespace {

Tensor gated_linear(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& words, int64_t first) {
  require_linear(x, weight, bias);
  require_row_gates(words, first, number_of_rows(x), weight.size(0));
  Tensor y = linear(x, weight, bias);
  select_rows(y, GateView(words, first), y);
  return y;
}

std::tuple<Tensor, Tensor> gated_linear_relu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  require_linear(x, weight, bias);
  Tensor y = linear(x, weight, bias);
  Tensor words = new_layer(y);
  gate_by_itself(y, words, true);
  return {y, words};
}

std::tuple<Tensor, Tensor, Tensor> gated_linear_backward(
    const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight,
    const std::optional<Tensor>& words, int64_t first, bool bias) {
  require_backward(grad, x, weight, "grad", "x", "weight");
  if (words) {
    require_row_gates(*words, first, number_of_rows(grad), grad.size(grad.dim() - 1));
  }
  LayerBackward layer(grad, x, weight, words, first, bias);
  const Scratch scratch(layer.dv_bytes());
  layer.put_dv(scratch.data());
  run_backward(layer);
  return {layer.products().dx, layer.products().dw, layer.bias_gradient()};
}

void require_soft_gate(const Tensor& gate, const Tensor& y) {
  require(gate.scalar_type() == y.scalar_type() && gate.numel() == y.numel() && gate.dim() == y.dim(), [&] {
    return "gate: got shape " + shape_of(gate) + ", needs " + shape_of(y) + " of the dtype of x";
  });
}

std::tuple<Tensor, Tensor> gated_linear_soft(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& gate_) {
  require_linear(x, weight, bias);
  const Tensor product = linear(x, weight, bias);
  require_soft_gate(gate_, product);
  const Tensor gate = contiguous_rows(gate_);
  Tensor y = new_rows(product);
  const RowView v(product), g(gate), to(y);
  const RowKernels kernels = row_kernels(y.scalar_type());
  torch::stable::parallel_for(0, v.rows, grain_of(v.row_bytes), [&](int64_t begin, int64_t end) {
    kernels.multiply(v[begin], g[begin], to[begin], (end - begin) * v.width);
  });
  return {y, product};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_linear_soft_backward(
    const Tensor& grad_, const std::optional<Tensor>& x, const std::optional<Tensor>& weight, const Tensor& gate_,
    const std::optional<Tensor>& product_, bool bias) {
  require_backward(grad_, x, weight, "grad", "x", "weight");
  const Tensor grad = contiguous_rows(grad_), gate = contiguous_rows(gate_);
  require_soft_gate(gate, grad);
  const Tensor product = product_ ? contiguous_rows(*product_) : grad;
  require_soft_gate(product, grad);
  Tensor dgate = product_ ? new_rows(grad) : nothing(grad);
  const RowView from(grad), g(gate), v(product);
  const Scratch dv(static_cast<size_t>(from.rows * from.row_bytes));
  char* to_gate = static_cast<char*>(dgate.mutable_data_ptr());
  const RowKernels kernels = row_kernels(grad.scalar_type());
  BiasSums sums(kernels, grad.scalar_type(), from.rows, from.width, bias);
  for_row_blocks(from.rows, from.row_bytes, [&](int64_t row) {
    char* to = dv.data() + row * from.row_bytes;
    kernels.multiply(from[row], g[row], to, from.width);
    sums.add(row, to);
    if (product_) {
      kernels.multiply(from[row], v[row], to_gate + row * from.row_bytes, from.width);
    }
  });
  LayerProducts products(grad, x, weight);
  products.put_dv(dv.data());
  products.multiply();
  return {products.dx, products.dw, sums.result(grad), dgate};
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gated_linear", GATEDOPS_KERNEL(gatedops::cpu::gated_linear));
  m.impl("gated_linear_relu", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_relu));
  m.impl("gated_linear_backward", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_backward));
  m.impl("gated_linear_soft", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_soft));
  m.impl("gated_linear_soft_backward", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_soft_backward));
}
