// The backward of layers with hard gates, or none: dv = grad where its gate is on, the sums of dv's columns, and two
// products with dv.
#pragma once

#include "gating.h"
#include "products.h"
#include "scratch.h"
#include "sums.h"

namespace gatedops::cpu {

// One layer. dv is grad itself where there are no gates, else it lies where put_dv says.
class LayerBackward {
 public:
  LayerBackward(
      const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight,
      const std::optional<Tensor>& words, int64_t first, bool bias)
      : grad_(contiguous_rows(grad)),
        from_(grad_),
        gates_(words ? GateView(*words, first) : GateView()),
        gated_(words.has_value()),
        bias_(bias),
        kernels_(gate_rows(grad_.scalar_type())),
        sums_(kernels_, grad_.scalar_type(), from_.rows, from_.width, bias),
        products_(grad_, x, weight),
        dv_(from_) {}

  // Bytes of dv, a multiple of a cache line.
  size_t dv_bytes() const {
    return gated_ ? static_cast<size_t>(from_.rows * from_.row_bytes + 63) / 64 * 64 : 0;
  }

  void put_dv(char* data) {
    if (gated_) {
      dv_.data = data;
      products_.put_dv(data);
    }
  }

  const LayerProducts& products() const {
    return products_;
  }

  // By all threads, or by the calling one: dv and the sums of its columns.
  void mask() {
    if (gated_ || bias_) {
      for_row_blocks(from_.rows, from_.row_bytes, [&](int64_t row) { mask_row(row); });
    }
  }
  void mask_here() {
    for_rows_of_blocks(0, from_.rows, from_.rows, [&](int64_t row) { mask_row(row); });
  }

  Tensor bias_gradient() const {
    return sums_.result(grad_);
  }

 private:
  Tensor grad_;
  RowView from_;
  GateView gates_;
  bool gated_, bias_;
  GateRows kernels_;
  BiasSums sums_;
  LayerProducts products_;
  RowView dv_;

  void mask_row(int64_t row) {
    if (gated_) {
      kernels_.select(from_[row], dv_[row], gates_[row], from_.width);
    }
    sums_.add(row, dv_[row]);
  }
};

// Of one layer: the rows by all threads, then the products.
inline void run_backward(LayerBackward& layer) {
  layer.mask();
  layer.products().multiply();
}

// Of two layers of the same rows.
inline void run_backward(LayerBackward& one, LayerBackward& other) {
  if (!run_apart(one.products(), other.products())) {
    run_backward(one);
    run_backward(other);
    return;
  }
  const auto whole = [](LayerBackward& layer) {
    layer.mask_here();
    layer.products().multiply();
  };
  run_both(true, [&] { whole(one); }, [&] { whole(other); });
}

}  // namespace gatedops::cpu
