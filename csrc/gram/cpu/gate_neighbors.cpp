// gate_neighbors: finds for every row the k rows with the largest Lambda, without storing the Gram. Ties go to the
// lower index, so the answer does not depend on the order in which tiles are done. Most values of a block are below the
// limits of their rows and columns. So whole vectors are compared with the limits first, and only the few values that
// are not below them are looked at one by one.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "core/cpu/tournament.h"
#include "core/kernel.h"
#include "problem.h"

namespace gatedops::cpu {
namespace {

template <class T>
struct Candidate {
  T value;
  int64_t index;
  // Tells whether this candidate is nearer. NaN, which overflow makes, counts as the largest value, as it does when
  // torch sorts.
  bool operator<(const Candidate& other) const {
    const bool nan = std::isnan(value), other_nan = std::isnan(other.value);
    if (nan || other_nan) {
      return nan && (!other_nan || index < other.index);
    }
    return value > other.value || (value == other.value && index < other.index);
  }
};

// The k nearest of every row so far, and a few more. A row that is full is cut down to its k nearest.
template <class T>
class Nearest {
 public:
  Nearest(int64_t rows, int64_t k)
      : k_(k),
        full_(static_cast<size_t>(k + k / 2 + 8)),
        rows_(static_cast<size_t>(rows)),
        limits_(static_cast<size_t>(rows), -std::numeric_limits<T>::infinity()) {}

  // Returns the limits of the rows from `row` on. A value that is less than the limit of a row is not among its k
  // nearest.
  const T* limits(int64_t row) const {
    return limits_.data() + row;
  }

  void offer(int64_t row, T value, int64_t index) {
    auto& found = rows_[row];
    if (found.empty()) {
      found.reserve(full_);
    }
    found.push_back({value, index});
    if (found.size() == full_) {
      keep_nearest(row);
    }
  }

  void write(int64_t row, T* values, int64_t* indices) {
    keep_nearest(row);
    auto& found = rows_[row];
    std::sort(found.begin(), found.end());
    for (size_t r = 0; r < found.size(); ++r) {
      values[r] = found[r].value;
      indices[r] = found[r].index;
    }
  }

 private:
  int64_t k_;
  size_t full_;
  std::vector<std::vector<Candidate<T>>> rows_;
  std::vector<T> limits_;

  void keep_nearest(int64_t row) {
    auto& found = rows_[row];
    const auto last = found.begin() + k_ - 1;
    std::nth_element(found.begin(), last, found.end());
    limits_[row] = last->value;
    found.erase(last + 1, found.end());
  }
};

// Calls use(index) for every bit that is set.
template <class Use>
void each_bit(uint64_t bits, const Use& use) {
  for (; bits != 0; bits &= bits - 1) {
    use(__builtin_ctzll(bits));
  }
}

void find_above(
    const TileKernels& k, const float* block, const TileRect& rect, const float* row_limits, const float* column_limits,
    uint64_t* by_row, uint64_t* by_column) {
  k.find_above_f32(block, rect.rows, rect.cols, row_limits, column_limits, by_row, by_column);
}

void find_above(
    const TileKernels& k, const double* block, const TileRect& rect, const double* row_limits,
    const double* column_limits, uint64_t* by_row, uint64_t* by_column) {
  k.find_above_f64(block, rect.rows, rect.cols, row_limits, column_limits, by_row, by_column);
}

template <class T>
void offer_block(const TileKernels& k, const TileRect& block, const T* values, bool symmetric, Nearest<T>& nearest) {
  uint64_t by_row[kBlock], by_column[kBlock];
  const bool both = symmetric && !block.diagonal;
  const T* column_limits = both ? nearest.limits(block.j) : nullptr;
  find_above(k, values, block, nearest.limits(block.i), column_limits, by_row, by_column);
  for (int i = 0; i < block.rows; ++i) {
    const T* row = values + i * kTileStride;
    if (symmetric && block.diagonal) {
      by_row[i] &= ~(uint64_t{1} << i);  // a row is not its own neighbour
    }
    each_bit(by_row[i], [&](int j) { nearest.offer(block.i + i, row[j], block.j + j); });
    if (both) {
      each_bit(by_column[i], [&](int j) { nearest.offer(block.j + j, row[j], block.i + i); });
    }
  }
}

template <class T>
void find_neighbors(const GramArgs& args, int64_t k, Tensor& values, Tensor& indices) {
  const GramProblem problem(args);
  const std::vector<T> scale(args.scale.begin(), args.scale.end());
  auto buffers = worker_buffers<T>(problem, nullptr);
  Nearest<T> nearest(args.n(), k);
  const auto visit = [&](int64_t worker, int64_t row, int64_t col) {
    const auto offer = [&](const TileRect& block, T* found) {
      offer_block(problem.kernels, block, found, problem.symmetric, nearest);
    };
    each_block<T>(problem, problem.rect(row, col), nullptr, scale, buffers[worker], offer);
  };
  if (problem.symmetric) {
    run_tournament(problem.row_tiles(), visit);
  } else {
    run_tasks(problem.row_tiles(), [&](int64_t worker, int64_t row) {
      for (int64_t col = 0; col < problem.col_tiles(); ++col) {
        visit(worker, row, col);
      }
    });
  }
  T* to = static_cast<T*>(values.mutable_data_ptr());
  auto* places = static_cast<int64_t*>(indices.mutable_data_ptr());
  torch::stable::parallel_for(0, args.n(), 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      nearest.write(i, to + i * k, places + i * k);
    }
  });
}

std::tuple<Tensor, Tensor> gate_neighbors(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, int64_t k, ScalarType dtype, std::vector<double> slope,
    std::vector<int64_t> widths) {
  const GramArgs args = GramArgs::lambda(words, y_words, {first, y_first, count}, scale).with_slopes(slope, widths);
  args.require_valid();
  require_float(dtype, "dtype");
  args.require_neighbors(k);
  Tensor values = torch::stable::new_empty(words, {args.n(), k}, dtype);
  Tensor indices = torch::stable::new_empty(words, {args.n(), k}, ScalarType::Long);
  if (dtype == ScalarType::Float) {
    find_neighbors<float>(args, k, values, indices);
  } else {
    find_neighbors<double>(args, k, values, indices);
  }
  return {values, indices};
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gate_neighbors", GATEDOPS_KERNEL(gatedops::cpu::gate_neighbors));
}
