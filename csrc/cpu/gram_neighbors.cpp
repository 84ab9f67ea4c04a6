// gate_neighbors: for every row the k rows with the largest Lambda, the Gram never stored. Ties go to
// the lower index, so the answer does not depend on the order in which tiles are done.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "../kernel.h"
#include "gram_args.h"
#include "gram_problem.h"
#include "tournament.h"

namespace gatedops::cpu {
namespace {

template <class T>
struct Candidate {
  T value;
  int64_t index;
  bool operator<(const Candidate& other) const {  // heap order: the worst candidate on top
    return value > other.value || (value == other.value && index < other.index);
  }
};

// The k best of every row so far, as heaps.
template <class T>
class Nearest {
 public:
  Nearest(int64_t rows, int64_t k) : k_(k), heaps_(static_cast<size_t>(rows)) {}

  void offer(int64_t row, T value, int64_t index) {
    auto& heap = heaps_[row];
    const Candidate<T> candidate{value, index};
    if (static_cast<int64_t>(heap.size()) < k_) {
      heap.push_back(candidate);
      std::push_heap(heap.begin(), heap.end());
    } else if (candidate < heap.front()) {
      std::pop_heap(heap.begin(), heap.end());
      heap.back() = candidate;
      std::push_heap(heap.begin(), heap.end());
    }
  }

  void write(int64_t row, T* values, int64_t* indices) {
    auto& heap = heaps_[row];
    std::sort_heap(heap.begin(), heap.end());
    for (size_t r = 0; r < heap.size(); ++r) {
      values[r] = heap[r].value;
      indices[r] = heap[r].index;
    }
  }

 private:
  int64_t k_;
  std::vector<std::vector<Candidate<T>>> heaps_;
};

template <class T>
void offer_block(const TileRect& block, const T* values, bool symmetric, Nearest<T>& nearest) {
  for (int i = 0; i < block.rows; ++i) {
    for (int j = 0; j < block.cols; ++j) {
      const T value = values[i * kTileStride + j];
      if (symmetric && block.i + i == block.j + j) {
        continue;  // a row is not its own neighbour
      }
      nearest.offer(block.i + i, value, block.j + j);
      if (symmetric && !block.diagonal) {
        nearest.offer(block.j + j, value, block.i + i);
      }
    }
  }
}

template <class T>
void find_neighbors(const GramArgs& args, int64_t k, Tensor& values, Tensor& indices) {
  const GramProblem problem(args.words, args.y_words, args.layers);
  const std::vector<T> scale(args.scale.begin(), args.scale.end());
  auto buffers = worker_buffers<T>(problem, nullptr);
  Nearest<T> nearest(args.n(), k);
  const auto visit = [&](int64_t worker, int64_t row, int64_t col) {
    const auto offer = [&](const TileRect& block, T* found) { offer_block(block, found, problem.symmetric, nearest); };
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
  for (int64_t i = 0; i < args.n(); ++i) {
    nearest.write(
        i, static_cast<T*>(values.mutable_data_ptr()) + i * k,
        static_cast<int64_t*>(indices.mutable_data_ptr()) + i * k);
  }
}

std::tuple<Tensor, Tensor> gate_neighbors(
    const Tensor& words, const std::optional<Tensor>& y_words, std::vector<int64_t> first, std::vector<int64_t> y_first,
    std::vector<int64_t> count, std::vector<double> scale, int64_t k, ScalarType dtype) {
  const GramArgs args{{}, words, {}, y_words, {first, y_first, count}, scale, {}, {}};
  args.require_valid();
  require_float(dtype, "dtype");
  const int64_t candidates = args.m() - (y_words ? 0 : 1);
  require(
      k >= 1 && (k <= candidates || args.n() == 0),
      "k: got " + std::to_string(k) + ", needs 1 to " + std::to_string(candidates));
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
