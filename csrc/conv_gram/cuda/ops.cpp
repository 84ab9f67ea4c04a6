// conv_gram on NVIDIA GPUs computes the Gram of the neural path kernel of convolutional networks (docs/math.md).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "conv_gram/args.h"
#include "core/cuda/op.h"
#include "core/kernel.h"
#include "launchers.h"
#include "plan.h"

namespace gatedops::cuda {
namespace {

// Registers in memory take at most this many bytes, unless a single pair needs more.
constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;

template <class T>
struct GpuDevice {
  void* stream;

  void numbers(const Numbers& numbers) const {
    require_launched(launch_numbers(numbers, stream), "conv_gram, numbers");
  }
  void stretch(const ConvBatch<T>& batch, const Stretch& stretch) const {
    require_launched(launch_stretch(batch, stretch, stream), "conv_gram, stretch");
  }
  void total(const ConvBatch<T>& batch, const TotalStep& step) const {
    require_launched(launch_total(batch, step, stream), "conv_gram, total");
  }
  void entries(const ConvBatch<T>& batch, const EntryStep& step) const {
    require_launched(launch_entries(batch, step, stream), "conv_gram, entries");
  }
  void close(const ConvBatch<T>& batch, const CloseStep& step) const {
    require_launched(launch_close(batch, step, stream), "conv_gram, close");
  }
  void write(const ConvBatch<T>& batch, int64_t place) const {
    require_launched(launch_write(batch, place, stream), "conv_gram, write");
  }
};

const uint32_t* words_of(const Tensor& words, const char* name) {
  const auto* data = static_cast<const uint32_t*>(words.const_data_ptr());
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 8 == 0 && (words.size(0) <= 1 || words.stride(0) % 2 == 0);
  require(aligned, std::string(name) + ": the CUDA kernels need rows on 8-byte boundaries; those of GateBits are");
  return data;
}

template <class T>
ConvSide<T> side_of(const Tensor& x, const Tensor& words, const char* words_name) {
  return {
      static_cast<const T*>(x.const_data_ptr()), x.size(1), words_of(words, words_name),
      words.size(0) > 1 ? words.stride(0) : 0};
}

template <class T>
void conv_gram_into(const ConvGramArgs& args, const std::vector<Instruction>& program, ScalarType dtype, Tensor& out) {
  const ConvPlan plan = ConvPlanner(program, sizeof(T)).plan();
  const int64_t n = out.size(0), m = out.size(1);
  const int64_t pairs = args.symmetric() ? n * (n + 1) / 2 : n * m;
  const int64_t per_batch = pairs_per_batch<T>(plan, pairs, kWorkspaceBytes);
  const Tensor x = torch::stable::contiguous(args.x), y = args.symmetric() ? x : torch::stable::contiguous(*args.y);
  Tensor store = torch::stable::new_empty(x, {per_batch * plan.numbers}, dtype);
  Tensor parts = torch::stable::new_empty(x, {per_batch * plan.parts}, ScalarType::Double);
  const GpuDevice<T> device{current_stream(args.words)};
  Tensor weights = torch::stable::new_empty(x, {static_cast<int64_t>(plan.weights.size())}, ScalarType::Double);
  store_numbers(plan.weights, static_cast<double*>(weights.mutable_data_ptr()), device);
  ConvBatch<T> batch{};
  batch.left = side_of<T>(x, args.words, "words");
  batch.right = side_of<T>(y, args.right_words(), "y_words");
  batch.pairs.m = m;
  batch.pairs.symmetric = args.symmetric();
  batch.store = static_cast<T*>(store.mutable_data_ptr());
  batch.numbers = plan.numbers;
  batch.parts = static_cast<double*>(parts.mutable_data_ptr());
  batch.weights = static_cast<const double*>(weights.const_data_ptr());
  batch.out = static_cast<T*>(out.mutable_data_ptr());
  run_plan(plan, batch, pairs, per_batch, device);
}

Tensor conv_gram(
    const Tensor& x, const Tensor& words, const std::optional<Tensor>& y, const std::optional<Tensor>& y_words,
    std::vector<int64_t> program, std::vector<double> scalars, ScalarType dtype) {
  const ConvGramArgs args{x, words, y, y_words};
  args.require_valid(dtype);
  require_device_of(words, x, "x");
  require_device_of(words, y, "y");
  require_device_of(words, y_words, "y_words");
  const std::vector<Instruction> code = decode_program(program, scalars, x.size(1), words.size(1));
  const DeviceGuard guard(words.get_device_index());
  Tensor out = torch::stable::new_empty(words, {x.size(0), args.right().size(0)}, dtype);
  if (out.numel() > 0) {
    dtype == ScalarType::Float ? conv_gram_into<float>(args, code, dtype, out)
                               : conv_gram_into<double>(args, code, dtype, out);
  }
  return out;
}

}  // namespace
}  // namespace gatedops::cuda

STABLE_TORCH_LIBRARY_IMPL(gatedops_cuda, CUDA, m) {
  m.impl("conv_gram", GATEDOPS_KERNEL(gatedops::cuda::conv_gram));
}
