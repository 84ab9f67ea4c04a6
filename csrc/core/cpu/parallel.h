// One task queue for all CPU kernels. Each thread of torch's pool takes the next task from an atomic counter, so that
// uneven tasks (triangles, ragged edges) are balanced.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace gatedops::cpu {

// Returns how many workers `run_tasks` uses. A worker is one thread of torch's pool; their number follows
// torch.set_num_threads.
inline int64_t workers() {
  return std::max<int64_t>(1, torch::stable::get_num_threads());
}

// Calls task(worker, index) for every index in [0, tasks), and hands out the indices in increasing order.
// Tasks must not throw: an exception would lose its type on the way out of the pool.
// With more than one thread even a single task runs in the pool. A matrix product inside a task then always runs on one
// thread, so that its bits do not depend on the number of threads.
template <class Task>
void run_tasks(int64_t tasks, const Task& task) {
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t t = next.fetch_add(1); t < tasks; t = next.fetch_add(1)) {
        task(worker, t);
      }
    }
  });
}

}  // namespace gatedops::cpu
