// Runs a conv_gram program on a GPU. A plan consists of stages. A stage is one kernel launch, and one more for each sum
// that it leaves in parts. The plan runs on all pairs, a batch at a time. Device does the launches: it is a GPU, or the
// emulation of tests/cuda/emulation/.
#pragma once

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "core/require.h"
#include "stretch.h"

namespace gatedops::cuda {

struct ConvStage {
  enum class Kind { stretch, total, entries } kind;
  explicit ConvStage(Kind of_kind) : kind(of_kind) {}

  Stretch stretch{};
  TotalStep total{};
  EntryStep entries{};
  // These add up the partial sums that a stretch or a total leaves.
  std::vector<CloseStep> closes;
};

struct ConvPlan {
  std::vector<ConvStage> stages;
  // The weights of all pools are here.
  std::vector<double> weights;
  // The store of a pair has this many numbers.
  int64_t numbers = 0;
  // A stage leaves at most this many partial sums for a pair.
  int64_t parts = 0;
  // This is the place of the last register.
  int64_t result = 0;
};

// Gives registers their places in the store. A register that is not read any more leaves its place to one of its size.
class ConvStore {
 public:
  int64_t place(int reg, int64_t numbers) {
    std::vector<int64_t>& free = free_[numbers];
    int64_t at = numbers_;
    if (free.empty()) {
      numbers_ += numbers;
    } else {
      at = free.back();
      free.pop_back();
    }
    places_[reg] = {at, numbers};
    return at;
  }
  int64_t at(int reg) const {
    const auto found = places_.find(reg);
    return found == places_.end() ? -1 : found->second.at;
  }
  // Forgets all registers whose last use lies before instruction `next`.
  void release(const Uses& uses, int next) {
    for (auto p = places_.begin(); p != places_.end();) {
      if (uses.last(p->first) < next) {
        free_[p->second.numbers].push_back(p->second.at);
        p = places_.erase(p);
      } else {
        ++p;
      }
    }
  }
  int64_t numbers() const {
    return numbers_;
  }

 private:
  struct Placed {
    int64_t at, numbers;
  };
  std::map<int, Placed> places_;
  std::map<int64_t, std::vector<int64_t>> free_;
  int64_t numbers_ = 0;
};

// Makes a plan. `item` is the bytes of a number.
class ConvPlanner {
 public:
  ConvPlanner(const std::vector<Instruction>& program, int item) : program_(program), uses_(program), item_(item) {}

  ConvPlan plan() {
    const int count = static_cast<int>(program_.size());
    for (int k = 0; k < count; ++k) {
      require_countable(k);
      require_known(k);
    }
    for (int k = 0; k < count;) {
      const int end = end_of_stretch(k);
      if (end > k) {
        add_stretch(k, end);
      } else {
        program_[k].total() ? add_total(k) : add_entries(k);
      }
      k = std::max(end, k + 1);
      store_.release(uses_, k);
    }
    plan_.numbers = store_.numbers();
    plan_.result = store_.at(count - 1);
    return plan_;
  }

 private:
  static constexpr int64_t kTotalParts = 64;

  static int64_t squared(int64_t a) {
    return a * a;
  }

  void require_countable(int k) const {
    const std::string name = "program: instruction " + std::to_string(k);
    require(
        !program_[k].masked() || program_[k].channels <= kMaxChannels,
        name + " has " + std::to_string(program_[k].channels) + " channels, the CUDA kernels take at most " +
            std::to_string(kMaxChannels));
  }

  // The kernels do not know all instructions. The portable op takes the programs that are refused here.
  void require_known(int k) const {
    const Instruction& code = program_[k];
    const bool added = code.op == ConvOp::masked_box || code.op == ConvOp::resample;
    const bool other_masks = code.masked() && code.first_y != code.first;
    require(
        !added && !other_masks && std::min(code.pad.y, code.pad.x) >= 0,
        "program: instruction " + std::to_string(k) +
            " is not known to the CUDA kernels: they run no MASKED_BOX, no RESAMPLE, no first_y other than first, and "
            "no negative padding");
  }

  // Returns one past the last instruction of the stretch that begins at k, or k if there is no stretch.
  int end_of_stretch(int k) {
    const Instruction& first = program_[k];
    if (!stays_on_map(first)) {
      return k;
    }
    int end = k;
    for (int next = k + 1; next <= static_cast<int>(program_.size()); ++next) {
      const Instruction& code = program_[next - 1];
      const bool joins = code.total() ? code.in == first.out : stays_on_map(code) && code.out == first.out;
      if (!joins || (code.masked() && code.first % 2 != 0)) {
        break;
      }
      if (!make_stretch(program_, uses_, item_, k, next, [](int) { return 0; })) {
        break;
      }
      end = next;
    }
    return end;
  }

  int64_t place_of(int reg) {
    const int64_t at = store_.at(reg);
    return at >= 0 ? at : store_.place(reg, squared(program_[reg].out.area()));
  }

  void add_stretch(int begin, int end) {
    ConvStage stage(ConvStage::Kind::stretch);
    const auto place = [this](int reg) { return place_of(reg); };
    stage.stretch = *make_stretch(program_, uses_, item_, begin, end, place);
    const Stretch& stretch = stage.stretch;
    for (int k = begin, sum = 0; k < end; ++k) {
      if (program_[k].total()) {
        stage.closes.push_back(close_step(k, sum++, stretch.sums, stretch.parts()));
      }
    }
    add(stage, int64_t{stretch.sums} * stretch.parts());
  }

  double total_scale(int k) const {
    const std::vector<double>& w = program_[k].weights;
    return program_[k].scale * (w.empty() ? 1.0 : w[0] * w[0]);
  }

  void add_total(int k) {
    ConvStage stage(ConvStage::Kind::total);
    const Instruction& code = program_[k];
    const int64_t area = code.in.area(), numbers = code.op == ConvOp::trace ? area : squared(area);
    const int64_t parts = std::min(kTotalParts, (numbers + kEntryThreads - 1) / kEntryThreads);
    stage.total = {store_.at(code.src), numbers, static_cast<int32_t>(parts)};
    stage.closes.push_back(close_step(k, 0, 1, stage.total.parts));
    add(stage, parts);
  }

  // Makes the step that adds up the parts of sum number `sum` of `sums`, which is the result of instruction k.
  CloseStep close_step(int k, int sum, int sums, int parts) {
    CloseStep step{};
    step.out = place_of(k);
    step.sum = sum;
    step.sums = sums;
    step.parts = parts;
    step.scale = total_scale(k);
    return step;
  }

  void add_entries(int k) {
    ConvStage stage(ConvStage::Kind::entries);
    const Instruction& code = program_[k];
    EntryStep& step = stage.entries;
    step.op = entry_op(code.op);
    step.flags = flags_of(code);
    step.src = code.src < 0 ? -1 : store_.at(code.src);
    step.src2 = code.src2 < 0 ? -1 : store_.at(code.src2);
    step.out = place_of(k);
    step.first = code.first < 0 ? 0 : code.first;
    step.channels = code.channels;
    step.used = used_words(code);
    step.stride = mask_stride(code);
    step.in_y = code.in.y, step.in_x = code.in.x, step.out_y = code.out.y, step.out_x = code.out.x;
    step.kernel_y = code.kernel.y, step.kernel_x = code.kernel.x;
    step.stride_y = code.stride.y, step.stride_x = code.stride.x;
    step.pad_y = code.pad.y, step.pad_x = code.pad.x;
    step.dilation_y = code.dilation.y, step.dilation_x = code.dilation.x;
    step.weights = code.weights.empty() ? -1 : static_cast<int64_t>(plan_.weights.size());
    plan_.weights.insert(plan_.weights.end(), code.weights.begin(), code.weights.end());
    step.scale = code.scale, step.scale2 = code.scale2, step.constant = code.constant;
    add(stage, 0);
  }

  static EntryOp entry_op(ConvOp op) {
    switch (op) {
      case ConvOp::input:
        return EntryOp::input;
      case ConvOp::constant:
        return EntryOp::constant;
      case ConvOp::add:
        return EntryOp::add;
      case ConvOp::pool:
        return EntryOp::pool;
      case ConvOp::select:
        return EntryOp::select;
      default:
        return EntryOp::box;
    }
  }

  void add(const ConvStage& stage, int64_t parts) {
    plan_.stages.push_back(stage);
    plan_.parts = std::max(plan_.parts, parts);
  }

  const std::vector<Instruction>& program_;
  Uses uses_;
  int item_;
  ConvStore store_;
  ConvPlan plan_;
};

// Stores `values` at `to` by calls of device.numbers(part).
template <class Device>
void store_numbers(const std::vector<double>& values, double* to, const Device& device) {
  for (size_t first = 0; first < values.size(); first += kEntryThreads) {
    Numbers part{to + first, static_cast<int32_t>(std::min<size_t>(kEntryThreads, values.size() - first)), {}};
    std::copy_n(values.begin() + static_cast<int64_t>(first), part.count, part.values);
    device.numbers(part);
  }
}

// Returns how many pairs a batch has: as many as fit `bytes` bytes of workspace and a grid.
template <class T>
int64_t pairs_per_batch(const ConvPlan& plan, int64_t pairs, int64_t bytes) {
  const int64_t of_a_pair = plan.numbers * static_cast<int64_t>(sizeof(T)) + plan.parts * 8;
  const int64_t grid = (int64_t{1} << 30) / std::max<int64_t>(1, plan.parts);
  return std::max<int64_t>(1, std::min({pairs, bytes / of_a_pair, grid}));
}

// Runs the plan on all pairs. `batch` is the whole problem; this function sets its range of pairs.
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
