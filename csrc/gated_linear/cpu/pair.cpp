// gated_linear_pair computes one layer of a deep gated network, both networks in one op. The feature network's
// pre-activation q gates the product v of the value network. The gate is 1{q > 0} if hard, and gain * sigmoid(beta q)
// if soft.
#include <torch/csrc/stable/library.h>

#include "backward.h"
#include "core/kernel.h"
#include "forward.h"

namespace gatedops::cpu {
namespace {

void require_pair(
    const Tensor& h, const Tensor& w_f, const std::optional<Tensor>& b_f, const Tensor& z, const Tensor& w_v,
    const std::optional<Tensor>& b_v) {
  require_linear(h, w_f, b_f, "h", "w_f", "b_f");
  require_linear(z, w_v, b_v, "z", "w_v", "b_v");
  require(z.scalar_type() == h.scalar_type(), "z: needs the dtype of h");
  require(w_v.size(0) == w_f.size(0), [&] {
    return "w_v: has " + std::to_string(w_v.size(0)) + " rows, w_f has " + std::to_string(w_f.size(0));
  });
  bool same = h.dim() == z.dim();
  for (int64_t d = 0; same && d + 1 < h.dim(); ++d) {
    same = h.size(d) == z.size(d);
  }
  require(same, [&] { return "z: got shape " + shape_of(z) + ", needs the leading dimensions of h, " + shape_of(h); });
}

// Computes words = gates of q, z = v * gate(q) and, unless h is null, h = relu(q). h may be q, and z may be v.
void gate_softly(
    const Tensor& q, const Tensor& v, const Tensor& words, const Tensor* h, const Tensor& z, double beta, double gain) {
  const RowView from(q), values(v), to(z);
  const LayerPacker packer(q, words);
  const SoftRow row{beta, gain, from.width};
  char* activations = h == nullptr ? nullptr : RowView(*h).data;
  const RowKernels kernels = row_kernels(q.scalar_type());
  torch::stable::parallel_for(0, from.rows, grain_of(from.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      char* activation = activations == nullptr ? nullptr : activations + r * from.row_bytes;
      packer.pack(r, from[r]);
      kernels.soft_pair(row, from[r], values[r], activation, to[r]);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> gated_linear_pair(
    const Tensor& h, const Tensor& w_f, const std::optional<Tensor>& b_f, const Tensor& z, const Tensor& w_v,
    const std::optional<Tensor>& b_v, bool linear_feature) {
  require_pair(h, w_f, b_f, z, w_v, b_v);
  Tensor q = linear(h, w_f, b_f);
  Tensor words = new_layer(q);
  gate_by_itself(q, words, !linear_feature);
  Tensor v = linear(z, w_v, b_v);
  select_rows(v, GateView(words, 0), v);
  return {q, v, words};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gated_linear_pair_soft(
    const Tensor& h, const Tensor& w_f, const std::optional<Tensor>& b_f, const Tensor& z, const Tensor& w_v,
    const std::optional<Tensor>& b_v, double beta, double gain, bool linear_feature) {
  require_pair(h, w_f, b_f, z, w_v, b_v);
  const Tensor q = linear(h, w_f, b_f), v = linear(z, w_v, b_v);
  Tensor words = new_layer(q), z_next = new_rows(v);
  if (linear_feature) {
    gate_softly(q, v, words, nullptr, z_next, beta, gain);
    return {q, z_next, words, nothing(q), v};
  }
  Tensor h_next = new_rows(q);
  gate_softly(q, v, words, &h_next, z_next, beta, gain);
  return {h_next, z_next, words, q, v};
}

void gated_linear_pair_out(
    const Tensor& h, const Tensor& w_f, const std::optional<Tensor>& b_f, const Tensor& z, const Tensor& w_v,
    const std::optional<Tensor>& b_v, bool soft, double beta, double gain, bool linear_feature, Tensor h_next,
    Tensor z_next, Tensor gates_out) {
  require_pair(h, w_f, b_f, z, w_v, b_v);
  for (const auto& [out, in, name] : {std::tuple{&h_next, &h, "h_next"}, std::tuple{&z_next, &z, "z_next"}}) {
    const bool fits = out->is_contiguous() && out->scalar_type() == in->scalar_type() && out->dim() == in->dim() &&
                      number_of_rows(*out) == number_of_rows(*in) && out->size(out->dim() - 1) == w_f.size(0);
    require(fits, [&, name = name] {
      return std::string(name) + ": needs to be contiguous, of shape (..., out_features) and the dtype of h";
    });
  }
  const RowView rows(h_next);
  require_words(gates_out, "gates_out");
  require(gates_out.size(0) == rows.rows && gates_out.size(1) == layer_words(1, rows.width), [&] {
    return "gates_out: got shape " + shape_of(gates_out) + ", needs (" + std::to_string(rows.rows) + ", " +
           std::to_string(layer_words(1, rows.width)) + ")";
  });
  linear_out(h, w_f, b_f, h_next);
  linear_out(z, w_v, b_v, z_next);
  if (soft) {
    gate_softly(h_next, z_next, gates_out, linear_feature ? nullptr : &h_next, z_next, beta, gain);
  } else {
    gate_by_itself(h_next, gates_out, !linear_feature);
    select_rows(z_next, GateView(gates_out, 0), z_next);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_linear_pair_backward(
    const Tensor& grad_h, const Tensor& grad_z, const std::optional<Tensor>& h, const std::optional<Tensor>& w_f,
    bool b_f, const std::optional<Tensor>& z, const std::optional<Tensor>& w_v, bool b_v, const Tensor& words,
    bool linear_feature) {
  require_backward(grad_h, h, w_f, "grad_h", "h", "w_f");
  require_backward(grad_z, z, w_v, "grad_z", "z", "w_v");
  const std::optional<Tensor> gates(words), none;
  for (const Tensor& grad : {grad_h, grad_z}) {
    require_row_gates(words, 0, number_of_rows(grad), grad.size(grad.dim() - 1));
  }
  LayerBackward feature(grad_h, h, w_f, linear_feature ? none : gates, 0, b_f);
  LayerBackward value(grad_z, z, w_v, gates, 0, b_v);
  const Scratch scratch(feature.dv_bytes() + value.dv_bytes());
  feature.put_dv(scratch.data());
  value.put_dv(scratch.data() + feature.dv_bytes());
  run_backward(feature, value);
  return {feature.products().dx, feature.products().dw, feature.bias_gradient(),
          value.products().dx,   value.products().dw,   value.bias_gradient()};
}

// A gradient as rows. For an absent gradient, one row of zeros stands for all rows.
struct Gradient {
  Tensor tensor;
  char* data;
  int64_t row_bytes;

  Gradient(const std::optional<Tensor>& grad, const Tensor& like)
      : tensor(grad ? contiguous_rows(*grad) : torch::stable::new_zeros(like, {like.size(like.dim() - 1)})),
        data(static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()))),
        row_bytes(grad ? RowView(tensor).row_bytes : 0) {}

  const char* operator[](int64_t row) const {
    return data + row * row_bytes;
  }
};

void require_gradient(const std::optional<Tensor>& grad, const Tensor& q, const char* name) {
  const bool fits =
      !grad || (grad->dim() == q.dim() && grad->numel() == q.numel() && grad->scalar_type() == q.scalar_type());
  require(fits, [&] { return std::string(name) + ": needs the shape and dtype of q, " + shape_of(q); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_linear_pair_soft_backward(
    const std::optional<Tensor>& grad_h, const std::optional<Tensor>& grad_z, const Tensor& q_,
    const std::optional<Tensor>& v_, const std::optional<Tensor>& h, const std::optional<Tensor>& w_f, bool b_f,
    const std::optional<Tensor>& z, const std::optional<Tensor>& w_v, bool b_v, double beta, double gain,
    bool linear_feature) {
  require_backward(q_, h, w_f, "q", "h", "w_f");
  require_backward(q_, z, w_v, "q", "z", "w_v");
  require_gradient(grad_h, q_, "grad_h");
  require_gradient(grad_z, q_, "grad_z");
  require_gradient(v_, q_, "v");
  require(v_ || !(h || w_f || b_f), "v: is missing, the gradient of the feature network needs it");
  const Tensor q = contiguous_rows(q_), v = v_ ? contiguous_rows(*v_) : q;
  const Gradient gh(grad_h, q), gz(grad_z, q);
  const RowView activations(q), values(v);
  const int64_t bytes = (activations.rows * activations.row_bytes + 63) / 64 * 64;
  const Scratch scratch(static_cast<size_t>(v_ ? 2 * bytes : bytes));
  char* dv = scratch.data();
  char* dq = v_ ? dv + bytes : dv;
  const SoftRow row{beta, gain, activations.width};
  const RowKernels kernels = row_kernels(q.scalar_type());
  BiasSums sums_f(kernels, q.scalar_type(), activations.rows, activations.width, b_f);
  BiasSums sums_v(kernels, q.scalar_type(), activations.rows, activations.width, b_v);
  for_row_blocks(activations.rows, activations.row_bytes, [&](int64_t r) {
    char *to_q = dq + r * activations.row_bytes, *to_v = dv + r * activations.row_bytes;
    kernels.soft_pair_backward(row, linear_feature, activations[r], values[r], gh[r], gz[r], v_ ? to_q : nullptr, to_v);
    sums_f.add(r, to_q);
    sums_v.add(r, to_v);
  });
  LayerProducts feature(q, h, w_f), value(q, z, w_v);
  feature.put_dv(dq);
  value.put_dv(dv);
  run_both(run_apart(feature, value), [&] { feature.multiply(); }, [&] { value.multiply(); });
  return {feature.dx, feature.dw, sums_f.result(q), value.dx, value.dw, sums_v.result(q)};
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gated_linear_pair", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_pair));
  m.impl("gated_linear_pair_out", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_pair_out));
  m.impl("gated_linear_pair_soft", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_pair_soft));
  m.impl("gated_linear_pair_backward", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_pair_backward));
  m.impl("gated_linear_pair_soft_backward", GATEDOPS_KERNEL(gatedops::cpu::gated_linear_pair_soft_backward));
}
