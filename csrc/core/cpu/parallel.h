// One task queue for all CPU kernels: one chunk per thread of torch's pool, tasks handed out by an
// atomic counter, so uneven tasks (triangles, ragged edges) balance themselves.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace gatedops::cpu {

// Number of workers `run_tasks` uses; follows torch.set_num_threads.
inline int64_t workers() {
  return std::max<int64_t>(1, torch::stable::get_num_threads());
}

// Calls task(worker, index) for every index in [0, tasks), indices handed out in increasing order.
// Tasks must not throw: an exception would lose its type on the way out of the pool.
// With more than one thread the pool is entered even for one task, so that a matrix product inside
// a task always runs on one thread: its bits then do not depend on the number of threads.
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
