// gate_counts counts exactly in how many rows each bit is set, in one pass over the words. Rows and words are cut into
// tasks; sums of integers do not depend on the cut.
#include "kernels.h"

#include <torch/csrc/stable/library.h>

#include "core/checks.h"
#include "core/cpu/parallel.h"
#include "core/kernel.h"

namespace gatedops::cpu {
namespace {

// A task has at least this many words, because adding up its counts takes 10 us.
constexpr int64_t kGrainWords = int64_t{1} << 18;
constexpr int64_t kTasksPerWorker = 4;

// Returns how many rows a task has, so that every worker gets several tasks that are not too small.
int64_t task_rows(int64_t rows, int64_t task_words) {
  const int64_t wanted = rows / (kTasksPerWorker * workers());
  return std::clamp(wanted, std::min(kGrainWords / task_words, kCountRows), kCountRows);
}

Tensor gate_counts(const Tensor& words) {
  require_words(words, "words");
  const int64_t rows = words.size(0), row_words = words.size(1), stride = words.stride(0);
  Tensor out = torch::stable::new_zeros(words, {32 * row_words}, ScalarType::Long);
  if (rows == 0 || row_words == 0) {
    return out;
  }
  const auto* from = static_cast<const uint32_t*>(words.const_data_ptr());
  auto* counts = static_cast<int64_t*>(out.mutable_data_ptr());
  const int64_t step = task_rows(rows, std::min(row_words, kCountWords));
  const int64_t blocks = (row_words + kCountWords - 1) / kCountWords;
  const auto count = active_kernels<GateKernels>().count;
  run_tasks((rows + step - 1) / step * blocks, [&](int64_t, int64_t task) {
    const int64_t row = task / blocks * step, word = task % blocks * kCountWords;
    count(
        from + row * stride + word, stride, std::min(step, rows - row), std::min(kCountWords, row_words - word),
        counts + 32 * word, step < rows);
  });
  return out;
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("gate_counts", GATEDOPS_KERNEL(gatedops::cpu::gate_counts));
}
