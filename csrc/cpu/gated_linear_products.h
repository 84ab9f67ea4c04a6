// The two matrix products of every backward of a linear layer.
#pragma once

#include "gated_linear_args.h"

namespace gatedops::cpu {

// dv weight, (..., in_features) for dv (..., out_features); empty where weight is absent.
inline Tensor input_gradient(const Tensor& dv, const std::optional<Tensor>& weight) {
  if (!weight) {
    return nothing(dv);
  }
  Tensor dx = new_rows(dv, weight->size(1));
  Tensor left, right;
  mm(as_matrix(dv, left), Matrix(*weight), as_matrix(dx, right));
  return dx;
}

// dv^T x, (out_features, in_features); empty where x is absent.
inline Tensor weight_gradient(const Tensor& dv, const std::optional<Tensor>& x) {
  if (!x) {
    return nothing(dv);
  }
  Tensor dw = new_tensor({dv.size(dv.dim() - 1), x->size(x->dim() - 1)}, dv.scalar_type());
  Tensor left, right;
  mm(as_matrix(dv, left).transposed(), as_matrix(*x, right), Matrix(dw));
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
        x->dim() == grad.dim() && x->scalar_type() == grad.scalar_type() && rows_of(*x) == rows_of(grad),
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
