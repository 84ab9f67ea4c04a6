// gate_relu and gate_select: hard gates on activations of any layout, seen as (n, P, C) with C gates at each of P
// positions. A row of q is made dense: either its channels or its positions are contiguous.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "args.h"
#include "core/kernel.h"

namespace gatedops::cpu {
namespace {

struct Activations {
  char* data;
  int64_t rows, positions, channels;
  // A row has `width` numbers of `element_size` bytes.
  int64_t width, element_size;
  // This says that positions are contiguous, as in NCHW.
  bool planes;
  // This many words lie from one position to the next.
  int64_t words_step;

  explicit Activations(const Tensor& q)
      : data(static_cast<char*>(const_cast<void*>(q.const_data_ptr()))),
        rows(q.size(0)),
        positions(q.size(1)),
        channels(q.size(2)),
        width(positions * channels),
        element_size(static_cast<int64_t>(q.element_size())),
        planes(positions > 1 && channels > 1 && q.stride(1) == 1),
        words_step(words_per_position(positions, channels)) {}

  int64_t grain() const {
    return grain_of(width * element_size);
  }
  char* row(int64_t r) const {
    return data + r * width * element_size;
  }
  char* position(int64_t r, int64_t p) const {
    return row(r) + p * channels * element_size;
  }
};

bool has_dense_rows(const Tensor& q) {
  const int64_t positions = q.size(1), channels = q.size(2);
  const auto steps = [&](int64_t position, int64_t channel) {
    return (positions == 1 || q.stride(1) == position) && (channels == 1 || q.stride(2) == channel);
  };
  return (q.size(0) <= 1 || q.stride(0) == positions * channels) && (steps(channels, 1) || steps(1, positions));
}

Tensor with_dense_rows(const Tensor& q) {
  return has_dense_rows(q) ? q : torch::stable::contiguous(q);
}

void require_activations(const Tensor& q) {
  require_layer_dtype(q, "q");
  require(q.dim() == 3, "q: got shape " + shape_of(q) + ", needs (n, positions, channels)");
  require(q.size(1) >= 1 && q.size(2) >= 1, "q: got shape " + shape_of(q) + ", needs at least one gate");
}

void pack_row(const Activations& from, const PackKernels& pack, int64_t row, uint32_t* words) {
  if (from.planes) {
    pack.planes(from.row(row), from.positions, from.channels, from.positions, words);
    return;
  }
  for (int64_t p = 0; p < from.positions; ++p) {
    pack.row(from.position(row, p), from.channels, words + p * from.words_step);
  }
}

std::tuple<Tensor, Tensor> gate_relu(const Tensor& q_) {
  require_activations(q_);
  const Tensor q = with_dense_rows(q_);
  Tensor z = torch::stable::empty_like(q);
  const Activations from(q), to(z);
  Tensor words = new_tensor({from.rows, padded_words(from.positions * from.words_step)}, ScalarType::Int);
  const GateView gates(words, 0);
  const size_t row_bytes = static_cast<size_t>(words.size(1)) * sizeof(uint32_t);
  const RowKernels kernels = row_kernels(q.scalar_type());
  const PackKernels pack = active_kernels<GateKernels>().pack(gate_source_of(q.scalar_type()));
  torch::stable::parallel_for(0, from.rows, from.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memset(gates[row], 0, row_bytes);
      pack_row(from, pack, row, gates[row]);
      kernels.relu(from.row(row), to.row(row), from.width);
    }
  });
  return {z, words};
}

void select_row(
    const Activations& from, const Activations& to, const RowKernels& kernels, int64_t row, const uint32_t* words) {
  if (from.planes) {
    kernels.select_planes(
        from.row(row), to.row(row), words, from.words_step, from.positions, from.channels, from.positions);
    return;
  }
  for (int64_t p = 0; p < from.positions; ++p) {
    kernels.select(from.position(row, p), to.position(row, p), words + p * from.words_step, from.channels);
  }
}

Tensor gate_select(const Tensor& q_, const Tensor& words, int64_t first) {
  require_activations(q_);
  const Tensor q = with_dense_rows(q_);
  Tensor z = torch::stable::empty_like(q);
  const Activations from(q), to(z);
  require_row_gates(words, first, from.rows, from.positions * from.words_step * 32);
  const GateView gates(words, first);
  const RowKernels kernels = row_kernels(q.scalar_type());
  torch::stable::parallel_for(0, from.rows, from.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      select_row(from, to, kernels, row, gates[row]);
    }
  });
  return z;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gate_relu", GATEDOPS_KERNEL(gatedops::cpu::gate_relu));
  m.impl("gate_select", GATEDOPS_KERNEL(gatedops::cpu::gate_select));
}
