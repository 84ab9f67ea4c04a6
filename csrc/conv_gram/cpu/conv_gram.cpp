// conv_gram computes the Gram of the neural path kernel of convolutional networks (docs/math.md) from gates that are
// packed for each pixel.
//
// A task takes some rows of x and kPairs rows of y. For each x it keeps maps of single displacements and the kernels
// that pools make; no memory grows as n x m x P x P.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "conv_gram/args.h"
#include "core/cpu/output.h"
#include "core/cpu/parallel.h"
#include "core/kernel.h"
#include "tile.h"

namespace gatedops::cpu {
namespace {

// kRows rows of x share the planning of a displacement, unless the stored registers of an x take more than kSharedStore
// bytes.
constexpr int kRows = 8;
constexpr int64_t kSharedStore = 64 << 10;

// Returns how many rows of x a task takes: few if a thread has little work, one if there is much to store for each row.
template <class T>
int rows_of_task(const Plan& plan, int64_t n, int64_t m) {
  int rows = plan.store_numbers * static_cast<int64_t>(sizeof(T)) > kSharedStore ? 1 : kRows;
  while (rows > 1 && (n + rows - 1) / rows * ((m + kPairs - 1) / kPairs) < 8 * workers()) {
    rows /= 2;
  }
  return rows;
}

// Writes row i of the Gram from column j on. If the Gram is symmetric, it writes only the diagonal and what lies left
// of it, and the mirror image.
template <class T>
void write_row(const T* values, int64_t i, int64_t j, bool symmetric, const Matrix& out) {
  T* data = reinterpret_cast<T*>(out.data);
  const int64_t end = std::min<int64_t>(j + kPairs, symmetric ? i + 1 : out.cols);
  for (int64_t k = j; k < end; ++k) {
    data[i * out.row_stride + k] = values[k - j];
    if (symmetric) {
      data[k * out.row_stride + i] = values[k - j];
    }
  }
}

template <class T>
void conv_gram_into(const ConvGramArgs& args, const ConvProblem& problem, const Tensor& out) {
  const Matrix x(args.x), y(args.right()), to(out);
  const PackedRows gates(args.words), y_gates(args.right_words());
  const int64_t n = x.rows, m = y.rows;
  const int rows = rows_of_task<T>(problem.plan, n, m);
  std::vector<ConvTile<T>> tiles;
  for (int64_t w = 0; w < workers(); ++w) {
    tiles.emplace_back(problem, x, gates, rows);
  }
  const int64_t row_tasks = (n + rows - 1) / rows;
  run_tasks(row_tasks * ((m + kPairs - 1) / kPairs), [&](int64_t worker, int64_t t) {
    const int64_t i = t % row_tasks * rows, j = t / row_tasks * kPairs;
    const int count = static_cast<int>(std::min<int64_t>(rows, n - i));
    if (args.symmetric() && i + count <= j) {
      return;
    }
    T results[kRows * kPairs];
    tiles[worker].load(y, y_gates, j);
    tiles[worker].run(i, count, results);
    for (int r = 0; r < count; ++r) {
      write_row(results + r * kPairs, i + r, j, args.symmetric(), to);
    }
  });
}

Tensor conv_gram(
    const Tensor& x, const Tensor& words, const std::optional<Tensor>& y, const std::optional<Tensor>& y_words,
    std::vector<int64_t> program, std::vector<double> scalars, ScalarType dtype) {
  const ConvGramArgs args{x, words, y, y_words};
  args.require_valid(dtype);
  const ConvProblem problem(decode_program(program, scalars, x.size(1), words.size(1)));
  Tensor out = new_output(x, {x.size(0), args.right().size(0)});
  if (dtype == ScalarType::Float) {
    conv_gram_into<float>(args, problem, out);
  } else {
    conv_gram_into<double>(args, problem, out);
  }
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("conv_gram", GATEDOPS_KERNEL(gatedops::cpu::conv_gram));
}
