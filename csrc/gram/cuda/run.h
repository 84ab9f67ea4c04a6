// Leads from the arguments of an op to launches. It fills in the problem of the kernels, prepares Sigma, and launches
// the Gram, its product with v, or the search for its largest values.
#pragma once

#include "core/cuda/op.h"
#include "launchers.h"
#include "tensors.h"

namespace gatedops::cuda {

constexpr int64_t kPartialBytes = int64_t{128} << 20;  // The partial products of a matvec take at most this many bytes.

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

// Checks all arguments, and fills in the gates and layers.
inline GramProblem gram_problem(const WholeArgs& args, const std::vector<int64_t>& gates = {}) {
  args.require_valid();
  require(
      !args.has_slopes(),
      "slope: the CUDA kernels take slope 0 alone; without GATEDOPS_BACKEND=cuda torch's own operations take the call");
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

// Tells whether the kernels make Sigma of bytes. It is exact, because with this many columns sums stay below 2^32.
inline bool sigma_of_bytes(const std::optional<Tensor>& x) {
  return x && x->scalar_type() == ScalarType::Byte && x->size(1) >= 1 && x->size(1) <= kMaxSigmaColumns;
}

// From kMinSplitColumns to kMaxSplitColumns columns, a product of split floats is within twice the error of torch's
// (docs/math.md, section 3).
constexpr int64_t kMinSplitColumns = 64, kMaxSplitColumns = 1024;

// Tells whether the kernel that makes a result of this type makes a Sigma of floats too.
inline bool sigma_of_floats(const GramArgs& args, const GramProblem& problem, OutputType type) {
  return args.x && args.x->scalar_type() == ScalarType::Float && args.right().scalar_type() == ScalarType::Float &&
         args.x->size(1) >= kMinSplitColumns && args.x->size(1) <= kMaxSplitColumns &&
         launchers_for(problem, type).sigma_of_floats;
}

// Returns floats (n, d) as two matrices of TF32 numbers, one below the other.
inline Tensor split_floats(const Tensor& x) {
  const int64_t padded = (x.size(1) + 3) / 4 * 4;
  Tensor split = torch::stable::new_empty(x, {2 * x.size(0), padded});
  auto* high = static_cast<float*>(split.mutable_data_ptr());
  const FloatRows rows{static_cast<const float*>(x.const_data_ptr()), x.size(0), x.size(1), x.stride(0), x.stride(1)};
  require_launched(launch_split(rows, high, high + x.size(0) * padded, padded, current_stream(x)), "npk_gram");
  return split;
}

// Returns rows [first, first + rows) of a matrix as 4-byte words. Its rows are multiples of 16 bytes.
inline GateRows word_rows(const Tensor& t, int64_t first, int64_t rows) {
  const int64_t stride = t.stride(0) * (t.scalar_type() == ScalarType::Byte ? 1 : 4) / 4;
  return {static_cast<const uint32_t*>(t.const_data_ptr()) + first * stride, rows, rows > 1 ? stride : 0};
}

// Prepares Sigma for the kernels if they make it. The memory that they read lives as long as this object.
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

inline void launch_gram(
    const GramProblem& problem, bool symmetric, OutputType type, const Tensor& words, const char* op) {
  require_launched(launchers_for(problem, type).gram(problem, symmetric, type, current_stream(words)), op);
}

// Returns the table with the layers of y in the place of those of x.
inline LayerTable right_layers(LayerTable table) {
  for (int l = 0; l < table.count; ++l) {
    table.layer[l].x_first = table.layer[l].y_first;
  }
  return table;
}

// Computes out = [out *] Lambda, with rows and columns scaled by the factors. `problem` comes from gram_problem(args).
inline void multiply_lambda(const GramArgs& args, GramProblem problem, bool times, Tensor& out) {
  problem.out.data = out.mutable_data_ptr();
  problem.out.row_stride = out.stride(0);
  problem.out.times = times;
  // These must live until the launch.
  std::optional<Tensor> factor, y_factor;
  if (args.factor) {
    factor = torch::stable::contiguous(detached(*args.factor));
    y_factor = args.y_factor ? torch::stable::contiguous(detached(*args.y_factor)) : *factor;
    problem.out.factor = static_cast<const double*>(factor->const_data_ptr());
    problem.out.y_factor = static_cast<const double*>(y_factor->const_data_ptr());
  }
  launch_gram(problem, !args.y_words, output_type(out.scalar_type(), "out"), args.words, "npk_gram");
}

inline void run_gram(const GramArgs& args, GramProblem problem, Tensor& out) {
  if (args.n() == 0 || args.m() == 0) {
    return;
  }
  const FusedSigma sigma(args, output_type(out.scalar_type(), "out"), problem);
  const bool given = args.x.has_value() && problem.layers.sigma == SigmaOf::kNothing;
  if (given) {
    sigma_into(*args.x, args.right(), out);
  }
  multiply_lambda(args, problem, given, out);
}

// Computes out = the Gram times v. Both are contiguous and have one dtype, float32 or float64. Returns false, and does
// nothing, if the kernels do not make Sigma.
inline bool run_matvec(const GramArgs& args, GramProblem problem, const Tensor& v, Tensor& out) {
  const OutputType type = output_type(v.scalar_type(), "v");
  const FusedSigma sigma(args, type, problem);
  if (args.x && problem.layers.sigma == SigmaOf::kNothing) {
    return false;
  }
  problem.contraction.v = v.const_data_ptr();
  problem.contraction.columns = static_cast<int32_t>(v.size(1));
  const MatvecCall call{problem, !args.y_words, out.mutable_data_ptr(), kPartialBytes};
  const GramLaunchers& kernel = launchers_for(problem, type);
  Tensor workspace = torch::stable::new_empty(v, {kernel.matvec_workspace(call, type)}, ScalarType::Byte);
  require_launched(kernel.matvec(call, type, workspace.mutable_data_ptr(), current_stream(v)), "npk_matvec");
  return true;
}

// Finds the k largest values of Lambda in each row, k <= kMaxNeighbors. If y_words is absent, a row is not its own
// neighbour.
inline void run_neighbors(const GramArgs& args, GramProblem problem, int64_t k, Tensor& values, Tensor& indices) {
  problem.neighbors = {
      values.mutable_data_ptr(), static_cast<int64_t*>(indices.mutable_data_ptr()), static_cast<int32_t>(k),
      !args.y_words};
  const OutputType type = output_type(values.scalar_type(), "dtype");
  require_launched(launchers_for(problem, type).neighbors(problem, type, current_stream(values)), "gate_neighbors");
}

}  // namespace gatedops::cuda
