// The forward of layers: torch's own x W^T + b, and hard gates on whole tensors of rows. These either pack the gates of
// a product, or keep the numbers whose given gates are on.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <cstring>

#include "args.h"

namespace gatedops::cpu {

// Computes out = x weight^T + bias for x (n, in_features) and a contiguous out (n, out_features). Like torch's linear
// it adds the product to rows that hold the bias, and therefore gives the same bits.
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

// Returns x weight^T + bias (..., out_features), contiguous, with the bits of torch's linear.
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
  // If the op is called under autocast without the wrapper, linear returns another dtype.
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
  torch::stable::detail::to<Tensor>(stack[0]);  // This takes over the returned reference.
}

// Returns new words (rows, W) for the gates of y (..., width).
inline Tensor new_layer(const Tensor& y) {
  const RowView view(y);
  return new_tensor({view.rows, layer_words(1, view.width)}, ScalarType::Int);
}

// Writes the gates of rows of y (..., width) into words (rows, W), padding included.
class LayerPacker {
 public:
  LayerPacker(const Tensor& y, const Tensor& words)
      : gates_(words, 0),
        kernels_(row_kernels(y.scalar_type())),
        pack_(active_kernels<GateKernels>().pack(gate_source_of(y.scalar_type()))),
        width_(y.size(y.dim() - 1)),
        used_((width_ + 31) / 32),
        padding_(static_cast<size_t>(words.size(1) - used_) * sizeof(uint32_t)) {}

  void pack(int64_t row, const void* y) const {
    pack_.row(y, width_, gates_[row]);
    pad(row);
  }
  // Also replaces y by relu(y).
  void relu_and_pack(int64_t row, void* y) const {
    kernels_.relu_and_pack(y, y, width_, gates_[row]);
    pad(row);
  }

 private:
  GateView gates_;
  RowKernels kernels_;
  PackKernels pack_;
  int64_t width_, used_;
  size_t padding_;

  void pad(int64_t row) const {
    std::memset(gates_[row] + used_, 0, padding_);
  }
};

// Writes the gates of y into words and, if `relu`, replaces y by relu(y).
inline void gate_by_itself(const Tensor& y, const Tensor& words, bool relu) {
  const RowView view(y);
  const LayerPacker packer(y, words);
  torch::stable::parallel_for(0, view.rows, grain_of(view.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      relu ? packer.relu_and_pack(row, view[row]) : packer.pack(row, view[row]);
    }
  });
}

// Sets `to` to `from` if the gate is on, else to 0. `to` may be `from`.
inline void select_rows(const Tensor& from, const GateView& gates, const Tensor& to) {
  const RowView source(from), target(to);
  const RowKernels kernels = row_kernels(from.scalar_type());
  torch::stable::parallel_for(0, source.rows, grain_of(source.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.select(source[row], target[row], gates[row], source.width);
    }
  });
}

}  // namespace gatedops::cpu
