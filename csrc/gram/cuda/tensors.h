// From the tensors of an op to what kernels are told, and the parts of a Gram that torch does.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <array>

#include "gram/args.h"
#include "launch.h"
#include "whole_rows.h"

namespace gatedops::cuda {

using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kPartialBytes = int64_t{128} << 20;  // of partial products of a matvec
constexpr int64_t kPanelBytes = int64_t{64} << 20;     // of a Gram held at a time where it is not the result
constexpr int64_t kPanelRows = 128;                    // a panel is a multiple of so many rows: whole tiles

inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return stream;
}

inline void require_launched(int error, const char* kernel) {
  if (error != cudaSuccess) {
    const char* what = cudaGetErrorString(static_cast<cudaError_t>(error));
    throw std::runtime_error(std::string(kernel) + ": " + what);
  }
}

inline void require_device_of(const Tensor& words, const std::optional<Tensor>& t, const char* name) {
  require(!t || t->device() == words.device(), std::string(name) + ": needs to be on the device of words");
}

// A view of the memory alone: what is done with it is never recorded by autograd.
inline Tensor detached(const Tensor& t) {
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < t.dim(); ++d) {
    sizes.push_back(t.size(d));
    strides.push_back(t.stride(d));
  }
  return torch::stable::from_blob(const_cast<void*>(t.const_data_ptr()), sizes, strides, t.device(), t.scalar_type());
}

inline Tensor rows_of(const Tensor& t, int64_t row, int64_t rows) {
  Tensor source = t;
  return torch::stable::narrow(source, 0, row, rows);
}

// Rows of a panel `cols` wide.
inline int64_t panel_rows(int64_t cols) {
  return std::max(kPanelRows, kPanelBytes / (8 * std::max<int64_t>(cols, 1)) / kPanelRows * kPanelRows);
}

// out = a b, of one dtype.
inline void mm(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(a), torch::stable::detail::from(b), torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes over the returned reference
}

// Whether the kernels make Sigma of bytes: exact, with columns whose sums stay below 2^32.
inline bool sigma_of_bytes(const std::optional<Tensor>& x) {
  return x && x->scalar_type() == ScalarType::Byte && x->size(1) >= 1 && x->size(1) <= kMaxSigmaColumns;
}

// With so many columns a product of split floats is within twice the error of torch's: docs/math.md, section 3.
constexpr int64_t kMinSplitColumns = 64, kMaxSplitColumns = 1024;

// Whether the wgmma kernel, which makes a result of this type, makes Sigma of floats too.
inline bool sigma_of_floats(const GramArgs& args, const GramProblem& problem, OutputType type) {
  return args.x && args.x->scalar_type() == ScalarType::Float && args.right().scalar_type() == ScalarType::Float &&
         args.x->size(1) >= kMinSplitColumns && args.x->size(1) <= kMaxSplitColumns && sm90_takes(problem, type);
}

// Floats (n, d) as two matrices of TF32 numbers, one below the other.
inline Tensor split_floats(const Tensor& x) {
  const int64_t padded = (x.size(1) + 3) / 4 * 4;
  Tensor split = torch::stable::new_empty(x, {2 * x.size(0), padded});
  auto* high = static_cast<float*>(split.mutable_data_ptr());
  const FloatRows rows{static_cast<const float*>(x.const_data_ptr()), x.size(0), x.size(1), x.stride(0), x.stride(1)};
  require_launched(launch_split(rows, high, high + x.size(0) * padded, padded, current_stream(x)), "npk_gram");
  return split;
}

// Rows [first, first + rows) of 4-byte words of a matrix whose rows are multiples of 16 bytes.
inline GateRows word_rows(const Tensor& t, int64_t first, int64_t rows) {
  const int64_t stride = t.stride(0) * (t.scalar_type() == ScalarType::Byte ? 1 : 4) / 4;
  return {static_cast<const uint32_t*>(t.const_data_ptr()) + first * stride, rows, rows > 1 ? stride : 0};
}

// Sigma as the kernels multiply it in, where they make it; what they read lives as long as this.
class FusedSigma {
 public:
  FusedSigma(const GramArgs& args, OutputType type, GramProblem& problem) {
    if (sigma_of_bytes(args.x)) {
      x_ = padded_bytes(detached(*args.x));
      y_ = args.y ? padded_bytes(detached(*args.y)) : *x_;
      describe(problem, SigmaOf::kBytes, (args.x->size(1) + 15) / 16 * 4);
    } else if (sigma_of_floats(args, problem, type)) {
      x_ = split_floats(detached(*args.x));
      y_ = args.y ? split_floats(detached(*args.y)) : *x_;
      describe(problem, SigmaOf::kFloats, x_->size(1));
      problem.sigma_x_rest = word_rows(*x_, problem.x.rows, problem.x.rows);
      problem.sigma_y_rest = word_rows(*y_, problem.y.rows, problem.y.rows);
    }
  }

 private:
  void describe(GramProblem& problem, SigmaOf sigma, int64_t words) const {
    problem.sigma_x = word_rows(*x_, 0, problem.x.rows);
    problem.sigma_y = word_rows(*y_, 0, problem.y.rows);
    problem.layers.sigma = sigma;
    problem.layers.layer[problem.layers.count] = {0, 0, static_cast<int32_t>(words), 0, 1.0};
  }

  std::optional<Tensor> x_, y_;
};

// out = X Y^T by torch, in out's dtype. Of uint8 rows the product is exact in float64, rounded once: this is for more
// columns than the kernels multiply.
inline void sigma_into(const Tensor& x, const Tensor& y, Tensor& out) {
  if (x.scalar_type() != ScalarType::Byte) {
    const Tensor left = torch::stable::to(detached(x), out.scalar_type());
    const Tensor right = torch::stable::to(detached(y), out.scalar_type());
    mm(left, torch::stable::transpose(right, 0, 1), detached(out));
    return;
  }
  const Tensor right = torch::stable::transpose(torch::stable::to(detached(y), ScalarType::Double), 0, 1);
  const int64_t step = panel_rows(out.size(1));
  for (int64_t i = 0; i < out.size(0); i += step) {
    const int64_t rows = std::min(step, out.size(0) - i);
    const Tensor left = torch::stable::to(rows_of(detached(x), i, rows), ScalarType::Double);
    Tensor part = rows_of(detached(out), i, rows);
    torch::stable::copy_(part, torch::stable::matmul(left, right));
  }
}

inline GateRows gate_rows(const Tensor& words, const char* name) {
  const GateRows rows{
      static_cast<const uint32_t*>(words.const_data_ptr()), words.size(0), words.size(0) > 1 ? words.stride(0) : 0};
  const bool aligned = reinterpret_cast<uintptr_t>(rows.words) % 16 == 0 && rows.stride % 4 == 0;
  require(aligned, std::string(name) + ": the CUDA kernels need rows on 16-byte boundaries; those of GateBits are");
  require(words.size(1) <= INT32_MAX, std::string(name) + ": a row has more words than int32 counts");
  return rows;
}

inline LayerTable layer_table(const GramArgs& args, const std::vector<int64_t>& gates = {}) {
  const Selection& s = args.layers;
  require(
      s.count.size() <= kMaxLayers, "count: the CUDA kernels take at most " + std::to_string(kMaxLayers) +
                                        " layers, got " + std::to_string(s.count.size()));
  LayerTable table{};
  table.count = static_cast<int32_t>(s.count.size());
  for (size_t l = 0; l < s.count.size(); ++l) {
    require(
        s.first[l] % 4 == 0 && s.y_first[l] % 4 == 0,
        "first: the CUDA kernels need layers on 16-byte boundaries; those of GateBits are");
    table.layer[l] = {
        static_cast<int32_t>(s.first[l]), static_cast<int32_t>(s.y_first[l]), static_cast<int32_t>(s.count[l]),
        gates.empty() ? 0 : static_cast<int32_t>(gates[l]), args.scale[l]};
  }
  return table;
}

inline OutputType output_type(ScalarType dtype, const char* name) {
  switch (dtype) {
    case ScalarType::Float:
      return OutputType::kFloat32;
    case ScalarType::Double:
      return OutputType::kFloat64;
    case ScalarType::BFloat16:
      return OutputType::kBFloat16;
    default:
      require(false, std::string(name) + ": the CUDA kernels give float32, float64 or bfloat16");
      return OutputType::kFloat32;
  }
}

// Checks all arguments; fills in the gates and layers.
inline GramProblem gram_problem(const WholeArgs& args, const std::vector<int64_t>& gates = {}) {
  args.require_valid();
  require_device_of(args.words, args.y_words, "y_words");
  require_device_of(args.words, args.x, "x");
  require_device_of(args.words, args.y, "y");
  require_device_of(args.words, args.factor, "factor");
  require_device_of(args.words, args.y_factor, "y_factor");
  const Tensor& right = args.y_words ? *args.y_words : args.words;
  GramProblem p{};
  p.x = gate_rows(args.words, "words");
  p.y = gate_rows(right, "y_words");
  p.layers = layer_table(args, gates);
  return p;
}

}  // namespace gatedops::cuda
