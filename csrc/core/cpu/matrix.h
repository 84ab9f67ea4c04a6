// Strided views of tensors for the tile kernels, and torch's own matrix product over them. A view is made from the raw
// pointer, so autograd never records what is done here.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>

#include "core/checks.h"

namespace gatedops::cpu {

template <class T>
constexpr ScalarType scalar_type_of();
template <>
constexpr ScalarType scalar_type_of<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type_of<double>() {
  return ScalarType::Double;
}

// A matrix somewhere in memory. Strides count elements.
struct Matrix {
  char* data = nullptr;
  int64_t rows = 0, cols = 0, row_stride = 0, col_stride = 0;
  ScalarType dtype = ScalarType::Float;
  int64_t element_size = 0;

  Matrix() = default;
  explicit Matrix(const Tensor& t)
      : data(static_cast<char*>(const_cast<void*>(t.const_data_ptr()))),
        rows(t.size(0)),
        cols(t.size(1)),
        row_stride(t.stride(0)),
        col_stride(t.stride(1)),
        dtype(t.scalar_type()),
        element_size(static_cast<int64_t>(t.element_size())) {}

  template <class T>
  static Matrix of(T* data, int64_t rows, int64_t cols, int64_t row_stride) {
    Matrix m;
    m.data = reinterpret_cast<char*>(data);
    m.rows = rows;
    m.cols = cols;
    m.row_stride = row_stride;
    m.col_stride = 1;
    m.dtype = scalar_type_of<T>();
    m.element_size = sizeof(T);
    return m;
  }

  Matrix block(int64_t row, int64_t n, int64_t col, int64_t m) const {
    Matrix b = *this;
    b.data += (row * row_stride + col * col_stride) * element_size;
    b.rows = n;
    b.cols = m;
    return b;
  }

  Matrix transposed() const {
    Matrix t = *this;
    std::swap(t.rows, t.cols);
    std::swap(t.row_stride, t.col_stride);
    return t;
  }

  Tensor tensor() const {
    return torch::stable::from_blob(
        data, {rows, cols}, {row_stride, col_stride}, torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
  }
};

// Computes out = a b. All three have one dtype.
inline void mm(const Matrix& a, const Matrix& b, const Matrix& out) {
  std::array<StableIValue, 3> stack{
      torch::stable::detail::from(a.tensor()), torch::stable::detail::from(b.tensor()),
      torch::stable::detail::from(out.tensor())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // This takes over the returned reference.
}

// Computes out = a, converted to out's dtype.
inline void convert(const Matrix& a, const Matrix& out) {
  Tensor to = out.tensor();
  torch::stable::copy_(to, a.tensor());
}

}  // namespace gatedops::cpu
