// Gradients of biases: sums over rows, in an order that depends on the shape only.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "args.h"

namespace gatedops::cpu {

// The columns of a matrix summed while its rows are produced. Rows are taken in blocks of kRows, each block
// by one thread; the sums of the blocks are then added up in float64.
class BiasSums {
 public:
  static constexpr int64_t kRows = 64;

  BiasSums(const GateRows& kernels, ScalarType dtype, int64_t rows, int64_t width, bool wanted)
      : add_(kernels.add),
        width_(width),
        blocks_((rows + kRows - 1) / kRows),
        size_(dtype == ScalarType::Double ? sizeof(double) : sizeof(float)),
        wanted_(wanted),
        partial_(wanted ? static_cast<size_t>(blocks_ * width) * size_ : 0) {}

  void add(int64_t row, const void* y) {
    if (wanted_) {
      add_(y, partial_.data() + static_cast<size_t>(row / kRows * width_) * size_, width_);
    }
  }

  // (width,), or empty where it is not wanted; of the dtype of `like`.
  Tensor result(const Tensor& like) const {
    Tensor out = new_tensor({wanted_ ? width_ : 0}, like.scalar_type());
    if (wanted_) {
      std::vector<double> total(static_cast<size_t>(width_));
      size_ == sizeof(double) ? accumulate<double>(total) : accumulate<float>(total);
      store(total, out);
    }
    return out;
  }

 private:
  template <class C>
  void accumulate(std::vector<double>& total) const {
    const C* partial = reinterpret_cast<const C*>(partial_.data());
    for (int64_t b = 0; b < blocks_; ++b) {
      for (int64_t j = 0; j < width_; ++j) {
        total[j] += partial[b * width_ + j];
      }
    }
  }

  static void store(const std::vector<double>& total, const Tensor& out) {
    switch (out.scalar_type()) {
      case ScalarType::Double:
        return store_as<double>(total, out);
      case ScalarType::BFloat16:
        return store_as<torch::headeronly::BFloat16>(total, out);
      case ScalarType::Half:
        return store_as<torch::headeronly::Half>(total, out);
      default:
        return store_as<float>(total, out);
    }
  }

  template <class E>
  static void store_as(const std::vector<double>& total, const Tensor& out) {
    using C = std::conditional_t<std::is_same_v<E, double>, double, float>;
    E* to = static_cast<E*>(out.mutable_data_ptr());
    for (size_t j = 0; j < total.size(); ++j) {
      to[j] = static_cast<E>(static_cast<C>(total[j]));
    }
  }

  void (*add_)(const void*, void*, int64_t);
  int64_t width_, blocks_;
  size_t size_;
  bool wanted_;
  std::vector<char> partial_;
};

// f(row) for every row of the blocks [begin, end) of BiasSums.
template <class F>
void for_rows_of_blocks(int64_t begin, int64_t end, int64_t rows, const F& f) {
  for (int64_t row = begin * BiasSums::kRows; row < std::min(rows, end * BiasSums::kRows); ++row) {
    f(row);
  }
}

// f(row) for every row, the rows of one block of BiasSums by one thread.
template <class F>
void for_row_blocks(int64_t rows, int64_t row_bytes, const F& f) {
  const int64_t blocks = (rows + BiasSums::kRows - 1) / BiasSums::kRows;
  const int64_t grain = std::max<int64_t>(1, grain_of(row_bytes) / BiasSums::kRows);
  torch::stable::parallel_for(
      0, blocks, grain, [&](int64_t begin, int64_t end) { for_rows_of_blocks(begin, end, rows, f); });
}

}  // namespace gatedops::cpu
