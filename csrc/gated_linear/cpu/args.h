// Arguments of the gated layers and their checks, and tensors seen as rows.
#pragma once

#include "core/cpu/matrix.h"
#include "gates/cpu/kernels.h"
#include "kernels.h"

namespace gatedops::cpu {

inline GateSource gate_source_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return GateSource::f64;
    case ScalarType::BFloat16:
      return GateSource::bf16;
    case ScalarType::Half:
      return GateSource::f16;
    default:
      return GateSource::f32;
  }
}

// Returns how many rows a tensor (..., d) has. d may be 0.
inline int64_t number_of_rows(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) {
    rows *= t.size(d);
  }
  return rows;
}

// A contiguous tensor (..., width) as rows.
struct RowView {
  char* data;
  int64_t rows, width, row_bytes;

  explicit RowView(const Tensor& t)
      : data(static_cast<char*>(const_cast<void*>(t.const_data_ptr()))),
        rows(number_of_rows(t)),
        width(t.size(t.dim() - 1)),
        row_bytes(width * static_cast<int64_t>(t.element_size())) {}

  char* operator[](int64_t row) const {
    return data + row * row_bytes;
  }
};

// The words of one layer. Its tensor is (n, W), and the layer begins at word `first`.
struct GateView {
  uint32_t* words = nullptr;
  int64_t stride = 0;

  GateView() = default;
  GateView(const Tensor& t, int64_t first)
      : words(static_cast<uint32_t*>(const_cast<void*>(t.const_data_ptr())) + first), stride(t.stride(0)) {}

  uint32_t* operator[](int64_t row) const {
    return words + row * stride;
  }
};

inline Tensor contiguous_rows(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// Returns a new contiguous tensor. torch::stable::new_empty goes through the dispatcher, which takes 1 us longer.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes[d]);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), static_cast<int32_t>(dtype),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Returns a new tensor (..., last) with the leading dimensions and the dtype of t.
inline Tensor new_rows(const Tensor& t, int64_t last) {
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end());
  sizes.back() = last;
  return new_tensor(sizes, t.scalar_type());
}

inline Tensor new_rows(const Tensor& t) {
  return new_rows(t, t.size(t.dim() - 1));
}

// Returns an empty tensor, which stands for a gradient that is not asked for.
inline Tensor nothing(const Tensor& t) {
  return new_tensor({0}, t.scalar_type());
}

inline void require_layer_dtype(const Tensor& x, const char* name) {
  const ScalarType t = x.scalar_type();
  const bool known =
      t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 || t == ScalarType::Half;
  require(known, [&] { return std::string(name) + ": needs dtype float32, float64, bfloat16 or float16"; });
}

inline void require_linear(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const char* x_name = "x",
    const char* weight_name = "weight", const char* bias_name = "bias") {
  require_layer_dtype(x, x_name);
  require(x.dim() >= 1, [&] { return std::string(x_name) + ": got shape (), needs (..., in_features)"; });
  require(weight.dim() == 2 && weight.size(1) == x.size(x.dim() - 1) && weight.size(0) >= 1, [&] {
    return std::string(weight_name) + ": got shape " + shape_of(weight) + ", needs (out_features, " +
           std::to_string(x.size(x.dim() - 1)) + ")";
  });
  require(weight.scalar_type() == x.scalar_type(), [&] {
    return std::string(weight_name) + ": needs the dtype of " + x_name;
  });
  if (bias) {
    require(bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == x.scalar_type(), [&] {
      return std::string(bias_name) + ": got shape " + shape_of(*bias) + ", needs (" + std::to_string(weight.size(0)) +
             ",) of the dtype of " + x_name;
    });
  }
}

inline void require_row_gates(const Tensor& words, int64_t first, int64_t rows, int64_t width) {
  require_words(words, "words");
  require(words.size(0) == rows && first >= 0 && first + (width + 31) / 32 <= words.size(1), [&] {
    return "words: got shape " + shape_of(words) + ", needs " + std::to_string(rows) + " rows that hold " +
           std::to_string(width) + " gates from word " + std::to_string(first) + " on";
  });
}

// Returns how many rows one thread should have at least, so that it reads 32 KiB.
inline int64_t grain_of(int64_t row_bytes) {
  constexpr int64_t kGrainBytes = int64_t{1} << 15;
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, row_bytes));
}

}  // namespace gatedops::cpu
