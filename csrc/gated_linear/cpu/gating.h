// Hard gates on whole tensors of rows: pack a product's own gates, or keep what given gates let through.
#pragma once

#include <cstring>

#include "args.h"

namespace gatedops::cpu {

// Words (rows, W) for the gates of y (..., width).
inline Tensor new_layer(const Tensor& y) {
  const RowView view(y);
  return new_tensor({view.rows, layer_words(view.width)}, ScalarType::Int);
}

// Writes the gates of rows of y (..., width) into words (rows, W), padding included.
class LayerPacker {
 public:
  LayerPacker(const Tensor& y, const Tensor& words)
      : gates_(words, 0),
        kernels_(gate_rows(y.scalar_type())),
        pack_(active_kernels<GateKernels>().pack(gate_source_of(y.scalar_type()))),
        width_(y.size(y.dim() - 1)),
        used_((width_ + 31) / 32),
        padding_(static_cast<size_t>(words.size(1) - used_) * sizeof(uint32_t)) {}

  void pack(int64_t row, const void* y) const {
    pack_.row(y, width_, gates_[row]);
    pad(row);
  }
  // And y = relu(y).
  void relu_and_pack(int64_t row, void* y) const {
    kernels_.relu_and_pack(y, y, width_, gates_[row]);
    pad(row);
  }

 private:
  GateView gates_;
  GateRows kernels_;
  PackKernels pack_;
  int64_t width_, used_;
  size_t padding_;

  void pad(int64_t row) const {
    std::memset(gates_[row] + used_, 0, padding_);
  }
};

// words = gates of y; then y = relu(y) in place, if wanted.
inline void gate_by_itself(const Tensor& y, const Tensor& words, bool relu) {
  const RowView view(y);
  const LayerPacker packer(y, words);
  torch::stable::parallel_for(0, view.rows, grain_of(view.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      relu ? packer.relu_and_pack(row, view[row]) : packer.pack(row, view[row]);
    }
  });
}

// to = from where the gate is on, else 0; to may be from.
inline void select_rows(const Tensor& from, const GateView& gates, const Tensor& to) {
  const RowView source(from), target(to);
  const GateRows kernels = gate_rows(from.scalar_type());
  torch::stable::parallel_for(0, source.rows, grain_of(source.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.select(source[row], target[row], gates[row], source.width);
    }
  });
}

}  // namespace gatedops::cpu
