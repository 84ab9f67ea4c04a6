// pack_gates and pack_gates_out turn pre-activations into one bit per gate; unpack_gates turns the bits into bools.
//
// q is (n, P, C): C gates at each of P positions. The C gates of a position are contiguous bits. If there is more than
// one position, each starts on a 64-bit boundary. Padding bits are 0.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstring>

#include "core/checks.h"
#include "core/cpu/matrix.h"
#include "core/cpu/output.h"
#include "core/cpu/parallel.h"
#include "core/kernel.h"
#include "kernels.h"

namespace gatedops::cpu {
namespace {

// A thread gets at least this many bytes of input, which take about 10 us.
constexpr int64_t kGrainBytes = int64_t{1} << 18;

GateSource gate_source(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return GateSource::f32;
    case ScalarType::Double:
      return GateSource::f64;
    case ScalarType::BFloat16:
      return GateSource::bf16;
    case ScalarType::Half:
      return GateSource::f16;
    case ScalarType::Bool:
      return GateSource::boolean;
    default:
      throw std::invalid_argument("q: needs dtype float32, float64, bfloat16, float16 or bool");
  }
}

struct PackTask {
  const char* q;
  int64_t positions, channels;
  // Strides count elements.
  int64_t row_stride, position_stride, channel_stride;
  int64_t element_size;
  uint32_t* words;
  int64_t words_stride, words_used, words_total;

  explicit PackTask(const Tensor& t, const Tensor& out)
      : q(static_cast<const char*>(t.const_data_ptr())),
        positions(t.size(1)),
        channels(t.size(2)),
        row_stride(t.stride(0)),
        position_stride(t.stride(1)),
        channel_stride(t.stride(2)),
        element_size(static_cast<int64_t>(t.element_size())),
        words(static_cast<uint32_t*>(const_cast<void*>(out.const_data_ptr()))),
        words_stride(out.stride(0)),
        words_used(positions * words_per_position(positions, channels)),
        words_total(out.size(1)) {}

  const char* at(int64_t row, int64_t position, int64_t channel) const {
    return q + (row * row_stride + position * position_stride + channel * channel_stride) * element_size;
  }
};

// Packs one position. Channels that are not contiguous are gathered first.
void pack_position(
    const PackTask& t, const PackKernels& k, int64_t row, int64_t position, uint32_t* words,
    std::vector<char>& gathered) {
  if (t.channel_stride == 1 || t.channels == 1) {
    k.row(t.at(row, position, 0), t.channels, words);
    return;
  }
  gathered.resize(static_cast<size_t>(t.channels * t.element_size));
  for (int64_t c = 0; c < t.channels; ++c) {
    std::memcpy(gathered.data() + c * t.element_size, t.at(row, position, c), static_cast<size_t>(t.element_size));
  }
  k.row(gathered.data(), t.channels, words);
}

void pack_row(const PackTask& t, const PackKernels& k, int64_t row, std::vector<char>& gathered) {
  uint32_t* words = t.words + row * t.words_stride;
  std::memset(words, 0, static_cast<size_t>(t.words_total) * sizeof(uint32_t));
  if (t.positions > 1 && t.position_stride == 1 && t.channel_stride != 1) {
    k.planes(t.at(row, 0, 0), t.positions, t.channels, t.channel_stride, words);
    return;
  }
  const int64_t step = words_per_position(t.positions, t.channels);
  for (int64_t p = 0; p < t.positions; ++p) {
    pack_position(t, k, row, p, words + p * step, gathered);
  }
}

void pack_into(const Tensor& q, const Tensor& out) {
  const PackTask task(q, out);
  const PackKernels kernels = active_kernels<GateKernels>().pack(gate_source(q.scalar_type()));
  const int64_t row_bytes = std::max<int64_t>(1, task.positions * task.channels * task.element_size);
  torch::stable::parallel_for(
      0, q.size(0), std::max<int64_t>(1, kGrainBytes / row_bytes), [&](int64_t begin, int64_t end) {
        std::vector<char> gathered;
        for (int64_t row = begin; row < end; ++row) {
          pack_row(task, kernels, row, gathered);
        }
      });
}

void require_gates(const Tensor& q) {
  require(q.dim() == 3, "q: got shape " + shape_of(q) + ", needs (n, positions, channels)");
  require(q.size(1) >= 1 && q.size(2) >= 1, "q: got shape " + shape_of(q) + ", needs at least one gate");
  gate_source(q.scalar_type());
}

Tensor pack_gates(const Tensor& q) {
  require_gates(q);
  Tensor out = new_output(q, {q.size(0), layer_words(q.size(1), q.size(2))}, ScalarType::Int);
  pack_into(q, out);
  return out;
}

void pack_gates_out(const Tensor& q, Tensor out) {
  require_gates(q);
  require_words(out, "out");
  require(
      out.size(0) == q.size(0) && out.size(1) == layer_words(q.size(1), q.size(2)),
      "out: got shape " + shape_of(out) + ", needs (" + std::to_string(q.size(0)) + ", " +
          std::to_string(layer_words(q.size(1), q.size(2))) + ")");
  pack_into(q, out);
}

// Maps a byte of eight gates to eight bool bytes.
constexpr std::array<std::array<uint8_t, 8>, 256> kBytes = [] {
  std::array<std::array<uint8_t, 8>, 256> table{};
  for (int b = 0; b < 256; ++b) {
    for (int k = 0; k < 8; ++k) {
      table[b][k] = static_cast<uint8_t>(b >> k & 1);
    }
  }
  return table;
}();

void unpack_position(const uint32_t* words, int64_t channels, uint8_t* out) {
  for (int64_t c = 0; c < channels; c += 8) {
    const auto& on = kBytes[words[c / 32] >> (c % 32) & 0xff];
    std::memcpy(out + c, on.data(), static_cast<size_t>(std::min<int64_t>(8, channels - c)));
  }
}

Tensor unpack_gates(const Tensor& words, int64_t positions, int64_t channels) {
  require_words(words, "words");
  require(positions >= 1 && channels >= 1, "positions, channels: need at least 1");
  require(
      channels <= words.size(1) * 32 && positions <= words.size(1) &&
          positions * words_per_position(positions, channels) <= words.size(1),
      "words: too few for " + std::to_string(positions) + " positions of " + std::to_string(channels) + " gates");
  Tensor out = new_output(words, {words.size(0), positions, channels}, ScalarType::Bool);
  const auto* from = static_cast<const uint32_t*>(words.const_data_ptr());
  auto* to = static_cast<uint8_t*>(out.mutable_data_ptr());
  const int64_t step = words_per_position(positions, channels), stride = words.stride(0);
  torch::stable::parallel_for(
      0, words.size(0), std::max<int64_t>(1, kGrainBytes / (positions * channels)), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          for (int64_t p = 0; p < positions; ++p) {
            unpack_position(from + row * stride + p * step, channels, to + (row * positions + p) * channels);
          }
        }
      });
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("pack_gates", GATEDOPS_KERNEL(gatedops::cpu::pack_gates));
  m.impl("pack_gates_out", GATEDOPS_KERNEL(gatedops::cpu::pack_gates_out));
  m.impl("unpack_gates", GATEDOPS_KERNEL(gatedops::cpu::unpack_gates));
}
