// Runs conv_gram's CUDA kernels, and the plan that launches them, on the CPU. tests/helpers/emulated_conv.py mirrors
// ConvCall.
#include <cmath>
#include <limits>
#include <string>

#include "conv_gram/cuda/entries_kernel.h"
#include "conv_gram/cuda/maps_kernel.h"
#include "conv_gram/cuda/plan.h"
#include "conv_gram/cuda/stretch.cpp"
#include "conv_gram/program.cpp"

namespace {

using namespace gatedops::cuda;

struct ConvCall {
  const void *x, *y;
  const uint32_t *words, *y_words;
  int64_t n, m, columns, words_in_row, words_stride;
  const int64_t* program;
  int64_t program_size;
  const double* scalars;
  int64_t scalars_size;
  void* out;
  int64_t pairs_per_batch;
  int32_t symmetric, is_double;
  uint32_t seed;
  // The call sets this to how many stages of the plan are stretches.
  int32_t stretches;
};

// Launches kernels: one block after the other, with its threads as fibers.
template <class T>
struct EmulatedDevice {
  const ConvCall& call;

  template <class Kernel>
  void launch(int64_t blocks, int threads, int64_t shared_bytes, const Kernel& kernel) const {
    gridDim.x = static_cast<unsigned>(blocks);
    emulation::Cluster::block_threads = threads;
    for (unsigned& block = emulation::Cluster::first_block = 0; block < gridDim.x; ++block) {
      emulation::Gpu gpu(threads, static_cast<size_t>(shared_bytes));
      emulation::Gpu::cluster = {&gpu};
      for (const auto& [words, rows] : {std::pair(call.words, call.n), std::pair(call.y_words, call.m)}) {
        gpu.readable.emplace_back(words, static_cast<size_t>(((rows - 1) * call.words_stride + call.words_in_row) * 4));
      }
      emulation::Fibers(threads, call.seed + block).run([&](int) { kernel(); });
    }
  }

  void numbers(const Numbers& numbers) const {
    launch(1, kEntryThreads, 0, [&] { run_numbers(numbers); });
  }
  void stretch(const ConvBatch<T>& batch, const Stretch& s) const {
    launch(batch.pairs.count * s.parts(), s.warps * kWarp, s.shared_bytes(sizeof(T)), [&] {
      if (!s.square()) {
        return run_stretch<T, kMapEdge, false>(batch, s);
      }
      switch (s.rows()) {
        case 8:
          return run_stretch<T, 8, true>(batch, s);
        case 16:
          return run_stretch<T, 16, true>(batch, s);
        default:
          return run_stretch<T, 32, true>(batch, s);
      }
    });
  }
  void total(const ConvBatch<T>& batch, const TotalStep& step) const {
    launch(batch.pairs.count * step.parts, kEntryThreads, kEntryThreads / kWarp * 8, [&] { run_total(batch, step); });
  }
  void entries(const ConvBatch<T>& batch, const EntryStep& step) const {
    launch(2, kEntryThreads, 0, [&] { run_entries(batch, step); });
  }
  void close(const ConvBatch<T>& batch, const CloseStep& step) const {
    launch(1, kEntryThreads, 0, [&] { run_close(batch, step); });
  }
  void write(const ConvBatch<T>& batch, int64_t place) const {
    launch(1, kEntryThreads, 0, [&] { run_write(batch, place); });
  }
};

template <class T>
void run(ConvCall& call) {
  const auto program = gatedops::decode_program(
      {call.program, call.program + call.program_size}, {call.scalars, call.scalars + call.scalars_size}, call.columns,
      call.words_in_row);
  const ConvPlan plan = ConvPlanner(program, sizeof(T)).plan();
  for (const ConvStage& stage : plan.stages) {
    call.stretches += stage.kind == ConvStage::Kind::stretch;
  }
  const int64_t pairs = call.symmetric != 0 ? call.n * (call.n + 1) / 2 : call.n * call.m;
  std::vector<T> store(static_cast<size_t>(call.pairs_per_batch * plan.numbers), std::numeric_limits<T>::quiet_NaN());
  std::vector<double> parts(static_cast<size_t>(call.pairs_per_batch * plan.parts), std::nan(""));
  const EmulatedDevice<T> device{call};
  std::vector<double> weights(plan.weights.size(), std::nan(""));
  store_numbers(plan.weights, weights.data(), device);
  const ConvBatch<T> batch{
      {static_cast<const T*>(call.x), call.columns, call.words, call.words_stride},
      {static_cast<const T*>(call.y), call.columns, call.y_words, call.words_stride},
      {0, 0, call.m, call.symmetric != 0},
      store.data(),
      plan.numbers,
      parts.data(),
      weights.data(),
      static_cast<T*>(call.out)};
  run_plan(plan, batch, pairs, call.pairs_per_batch, device);
}

}  // namespace

// Returns null, or a message that says what went wrong.
extern "C" const char* emulate_conv_gram(ConvCall* call) {
  static std::string message;
  try {
    call->stretches = 0;
    call->is_double != 0 ? run<double>(*call) : run<float>(*call);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
