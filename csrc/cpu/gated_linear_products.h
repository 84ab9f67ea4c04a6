// The two matrix products of every backward of a linear layer.
#pragma once

#include "gated_linear_args.h"

namespace gatedops::cpu {

// dv weight, (..., in_features) for dv (..., out_features); empty where weight is absent.
inline Tensor input_gradient(const Tensor& dv, const std::optional<Tensor>& weight) {
  if (!weight) {
    return torch::stable::new_empty(dv, {0});
  }
  Tensor dx = torch::stable::new_empty(dv, sizes_with_last(dv, weight->size(1)));
  Tensor left, right;
  const int64_t rows = dv.numel() / weight->size(0);
  mm(as_matrix(dv, rows, left), Matrix(*weight), as_matrix(dx, rows, right));
  return dx;
}

// dv^T x, (out_features, in_features); empty where x is absent.
inline Tensor weight_gradient(const Tensor& dv, const std::optional<Tensor>& x) {
  if (!x) {
    return torch::stable::new_empty(dv, {0});
  }
  const int64_t width = dv.size(dv.dim() - 1), rows = dv.numel() / width;
  Tensor dw = torch::stable::new_empty(dv, {width, x->size(x->dim() - 1)});
  Tensor left, right;
  mm(as_matrix(dv, rows, left).transposed(), as_matrix(*x, rows, right), Matrix(dw));
  return dw;
}

// What a backward is asked for: x for the gradient of the weight, weight for that of x.
inline void require_backward(
    const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight, const char* grad_name,
    const char* x_name, const char* weight_name) {
  require_layer_dtype(grad, grad_name);
  require(grad.dim() >= 1 && grad.size(grad.dim() - 1) >= 1, std::string(grad_name) + ": needs (..., out_features)");
  const int64_t width = grad.size(grad.dim() - 1);
  if (x) {
    require(
        x->dim() == grad.dim() && x->scalar_type() == grad.scalar_type() &&
            x->numel() / std::max<int64_t>(1, x->size(x->dim() - 1)) == grad.numel() / width,
        std::string(x_name) + ": got shape " + shape_of(*x) + ", needs one row per row of " + grad_name);
  }
  if (weight) {
    require(
        weight->dim() == 2 && weight->size(0) == width && weight->scalar_type() == grad.scalar_type(),
        std::string(weight_name) + ": got shape " + shape_of(*weight) + ", needs (" + std::to_string(width) +
            ", in_features)");
  }
}

}  // namespace gatedops::cpu
