// Runs a plan on all pairs, a batch at a time. Device is what launches: a GPU, or the emulation of tests/emulation/.
#pragma once

#include <algorithm>

#include "plan.h"

namespace gatedops::cuda {

// Pairs of a batch: as many as fit `bytes` of workspace, and a grid.
template <class T>
int64_t pairs_per_batch(const ConvPlan& plan, int64_t pairs, int64_t bytes) {
  const int64_t of_a_pair = plan.numbers * static_cast<int64_t>(sizeof(T)) + plan.parts * 8;
  const int64_t grid = (int64_t{1} << 30) / std::max<int64_t>(1, plan.parts);
  return std::max<int64_t>(1, std::min({pairs, bytes / of_a_pair, grid}));
}

// batch: the whole problem; its pairs are those that are left to choose here.
template <class T, class Device>
void run_plan(const ConvPlan& plan, ConvBatch<T> batch, int64_t pairs, int64_t per_batch, const Device& device) {
  for (int64_t first = 0; first < pairs; first += per_batch) {
    batch.pairs.first = first;
    batch.pairs.count = std::min(per_batch, pairs - first);
    for (const ConvStage& stage : plan.stages) {
      switch (stage.kind) {
        case ConvStage::Kind::stretch:
          device.stretch(batch, stage.stretch);
          break;
        case ConvStage::Kind::total:
          device.total(batch, stage.total);
          break;
        case ConvStage::Kind::entries:
          device.entries(batch, stage.entries);
          break;
      }
      for (const CloseStep& close : stage.closes) {
        device.close(batch, close);
      }
    }
    device.write(batch, plan.result);
  }
}

}  // namespace gatedops::cuda
