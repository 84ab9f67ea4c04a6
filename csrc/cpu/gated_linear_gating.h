// Hard gates on whole tensors of rows: pack a product's own gates, or keep what given gates let through.
#pragma once

#include <cstring>

#include "gated_linear_args.h"

namespace gatedops::cpu {

// Words (rows, W) for the gates of y (..., width).
inline Tensor new_layer(const Tensor& y) {
  const RowView view(y);
  return new_tensor({view.rows, layer_words(view.width)}, ScalarType::Int);
}

// words = gates of y; then y = relu(y) in place, if wanted. words (rows, W) is written whole, padding included.
inline void gate_by_itself(const Tensor& y, const Tensor& words, bool relu) {
  const RowView view(y);
  const GateView gates(words, 0);
  const GateRows kernels = gate_rows(y.scalar_type());
  const PackKernels pack = pack_kernels(gate_source_of(y.scalar_type()));
  const int64_t used = (view.width + 31) / 32;
  const size_t padding = static_cast<size_t>(words.size(1) - used) * sizeof(uint32_t);
  torch::stable::parallel_for(0, view.rows, grain_of(view.row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (relu) {
        kernels.relu_and_pack(view[row], view[row], view.width, gates[row]);
      } else {
        pack.row(view[row], view.width, gates[row]);
      }
      std::memset(gates[row] + used, 0, padding);
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
