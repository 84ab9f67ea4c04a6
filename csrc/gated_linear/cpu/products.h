// torch's own matrix products, as gated layers need them: the forward x W^T + b, and dv W and dv^T x of a backward.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "args.h"
#include "core/cpu/parallel.h"

namespace gatedops::cpu {

// out = a b, straight from torch's CPU kernel: nothing is dispatched, recorded or under autocast. In a task of the
// thread pool the product runs on the task's thread alone.
inline void product(const Matrix& a, const Matrix& b, const Matrix& out) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.tensor().get(), a.tensor().get(), b.tensor().get()));
}

// A contiguous tensor (..., d) as a matrix (rows, d).
inline Matrix rows_as_matrix(const Tensor& t) {
  Matrix m;
  m.data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  m.rows = rows_of(t);
  m.cols = m.row_stride = t.size(t.dim() - 1);
  m.col_stride = 1;
  m.dtype = t.scalar_type();
  m.element_size = static_cast<int64_t>(t.element_size());
  return m;
}

// (..., d) as a matrix (rows, d) over memory that `owner` keeps.
inline Matrix as_matrix(const Tensor& t, Tensor& owner) {
  if (t.dim() != 2 && t.is_contiguous()) {
    owner = t;
    return rows_as_matrix(t);
  }
  // A view where t's strides allow one: its rows need not follow each other.
  owner = t.dim() == 2 ? t : torch::stable::reshape(t, {rows_of(t), t.size(t.dim() - 1)});
  return Matrix(owner);
}

// out = x weight^T + bias for x (n, in_features) and a contiguous out (n, out_features). This is how torch's linear
// computes it, a product onto rows that hold the bias, and so these are torch's bits.
inline void linear_onto_bias(const Tensor& x, const Tensor& weight, const Tensor& bias_, const Tensor& out) {
  const Tensor bias = contiguous_rows(bias_);
  const RowView to(out);
  const void* row = bias.const_data_ptr();
  torch::stable::parallel_for(0, to.rows, grain_of(to.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(to[r], row, static_cast<size_t>(to.row_bytes));
    }
  });
  const Tensor sum = Matrix(out).tensor();
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(
      sum.get(), sum.get(), Matrix(x).tensor().get(), Matrix(weight).transposed().tensor().get(), 1.0, 1.0));
}

// x weight^T + bias (..., out_features), contiguous: torch's linear, and so torch's bits.
inline Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  if (x.dim() == 2 && bias) {
    const Tensor y = new_rows(x, weight.size(0));
    linear_onto_bias(x, weight, *bias, y);
    return y;
  }
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(x), torch::stable::detail::from(weight), torch::stable::detail::from(bias)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor y = torch::stable::detail::to<Tensor>(stack[0]);
  // Where the op is called under autocast, past the wrapper, linear has another dtype.
  return contiguous_rows(y.scalar_type() == x.scalar_type() ? y : torch::stable::to(y, x.scalar_type()));
}

inline void linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  if (x.dim() == 2 && bias) {
    return linear_onto_bias(x, weight, *bias, out);
  }
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(x), torch::stable::detail::from(weight), torch::stable::detail::from(bias),
      torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the returned reference
}

// Calls first() and second(), which are independent, at the same time on one thread each where `apart`, else one
// after the other. Two products of this kind that torch would divide among both threads one by one make them wait for
// each other twice, and share caches that then hold one half of everything.
template <class First, class Second>
void run_both(bool apart, const First& first, const Second& second) {
  if (!apart) {
    first();
    second();
    return;
  }
  torch::stable::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t half = begin; half < end; ++half) {
      half == 0 ? first() : second();
    }
  });
}

// The two products of a backward of one layer, for the gradient dv (rows, out_features) of its product: dx = dv weight
// where weight is given, dw = dv^T x where x is; else these are empty.
class LayerProducts {
 public:
  Tensor dx, dw;

  // grad: a tensor (..., out_features) with the leading dimensions and the dtype of dv.
  LayerProducts(const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight)
      : has_x_(x.has_value()), has_weight_(weight.has_value()), dv_(rows_as_matrix(grad)) {
    dx = weight ? new_rows(grad, weight->size(1)) : nothing(grad);
    dw = x ? new_tensor({dv_.cols, x->size(x->dim() - 1)}, grad.scalar_type()) : nothing(grad);
    if (x) {
      x_ = as_matrix(*x, x_owner_);
    }
    if (weight) {
      weight_ = Matrix(*weight);
    }
  }

  // dv begins at `data`, rows one after another.
  void put_dv(char* data) {
    dv_.data = data;
  }

  // Multiply-adds of one of the products; 0 where there are none.
  int64_t work() const {
    return dv_.rows * dv_.cols * (has_weight_ ? weight_.cols : has_x_ ? x_.cols : 0);
  }

  void multiply() const {
    // Above this a product divided by torch is as good as two side by side (measured on two cores).
    constexpr int64_t kSmall = int64_t{1} << 25;
    const bool apart = workers() == 2 && has_x_ && has_weight_ && work() <= kSmall;
    run_both(apart, [&] { multiply_input(); }, [&] { multiply_weight(); });
  }

 private:
  bool has_x_, has_weight_;
  Matrix dv_, x_, weight_;
  Tensor x_owner_;

  void multiply_input() const {
    if (has_weight_) {
      product(dv_, weight_, rows_as_matrix(dx));
    }
  }
  void multiply_weight() const {
    if (has_x_) {
      product(dv_.transposed(), x_, Matrix(dw));
    }
  }
};

// Whether the products of two layers run side by side, one layer on each of two threads.
inline bool run_apart(const LayerProducts& a, const LayerProducts& b) {
  constexpr int64_t kSmall = int64_t{1} << 30;  // as above, for four products
  return workers() == 2 && a.work() > 0 && b.work() > 0 && std::max(a.work(), b.work()) <= kSmall;
}

// What a backward is asked for: x for the gradient of the weight, weight for that of x.
inline void require_backward(
    const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight, const char* grad_name,
    const char* x_name, const char* weight_name) {
  require_layer_dtype(grad, grad_name);
  require(grad.dim() >= 1 && grad.size(grad.dim() - 1) >= 1, [&] {
    return std::string(grad_name) + ": needs (..., out_features)";
  });
  const int64_t width = grad.size(grad.dim() - 1);
  if (x) {
    require(x->dim() == grad.dim() && x->scalar_type() == grad.scalar_type() && rows_of(*x) == rows_of(grad), [&] {
      return std::string(x_name) + ": got shape " + shape_of(*x) + ", needs one row per row of " + grad_name;
    });
  }
  if (weight) {
    require(weight->dim() == 2 && weight->size(0) == width && weight->scalar_type() == grad.scalar_type(), [&] {
      return std::string(weight_name) + ": got shape " + shape_of(*weight) + ", needs (" + std::to_string(width) +
             ", in_features)";
    });
  }
}

}  // namespace gatedops::cpu
