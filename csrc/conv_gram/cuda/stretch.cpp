// Makes stretches. It decides which instruction finds its operands in the registers, which in a slot, and which in the
// store.
#include "stretch.h"

#include <algorithm>
#include <map>
#include <utility>

namespace gatedops::cuda {
namespace {

// Makes the steps of a stretch, one instruction after the other.
class StretchMaker {
 public:
  using Place = std::function<int64_t(int)>;

  StretchMaker(
      const std::vector<Instruction>& program, const Uses& uses, int item, int begin, int end, const Place& place)
      : program_(program), uses_(uses), item_(item), begin_(begin), end_(end), place_(place) {}

  std::optional<Stretch> make() {
    stretch_ = {};
    stretch_.at_zero_only = true;
    const Extent size = map_size();
    stretch_.height = size.y;
    stretch_.width = size.x;
    reserve_for_boxes();
    for (int k = begin_; k < end_ && fits_; ++k) {
      program_[k].total() ? total(k) : compute(k);
      free_slots(k);
    }
    stretch_.slots = used_slots_;
    stretch_.warps = warps();
    return fits_ ? std::optional<Stretch>(stretch_) : std::nullopt;
  }

 private:
  static constexpr int64_t kSharedBytes = 96 << 10;
  static_assert(kWarp * 8 * (kMaxSums + kMaxSlots * kMapEdge) <= kSharedBytes, "one warp always fits, in float64 too");

  Extent map_size() const {
    const Instruction& first = program_[begin_];
    return first.total() ? first.in : first.out;
  }

  // Returns how many warps a block has: as many as have work, but fewer if they would take more shared memory than
  // every GPU has for a block.
  int warps() const {
    const int shifts = stretch_.at_zero_only ? 1 : stretch_.width, side_by_side = stretch_.maps_per_warp();
    Stretch one = stretch_;
    one.warps = 1;
    const int needed = (shifts + side_by_side - 1) / side_by_side;
    const int fit = static_cast<int>(kSharedBytes / one.shared_bytes(item_));
    return std::max(1, std::min({needed, kMaxWarps, fit}));
  }

  void emit(MapStep step) {
    fits_ = fits_ && stretch_.steps < kMaxSteps;
    if (fits_) {
      stretch_.step[stretch_.steps++] = step;
    }
  }

  // A box of any window needs the slots 0 and 1.
  void reserve_for_boxes() {
    for (int k = begin_; k < end_; ++k) {
      const MapStep step = box_step(program_[k]);
      if (program_[k].op == ConvOp::box && !step.is_3x3() && !step.is_pointwise()) {
        used_slots_ = 2;
      }
    }
  }

  bool inside(int reg) const {
    return reg >= begin_;
  }

  // Returns how many uses of register k, which was just computed, find it in the registers: those of the totals that
  // follow at once, and of the instruction after them.
  int uses_in_registers(int k) const {
    int j = k + 1, found = 0;
    for (; j < end_ && program_[j].total() && program_[j].src == k; ++j) {
      ++found;
    }
    return found + (j < end_ && (program_[j].src == k || program_[j].src2 == k) ? 1 : 0);
  }

  void compute(int k) {
    Instruction code = program_[k];
    if (code.src2 >= 0 && code.src2 == current_) {
      std::swap(code.src, code.src2);
      std::swap(code.scale, code.scale2);
    }
    if (code.src >= 0) {
      bring(code.src);
    }
    emit(step_of(code));
    current_ = k;
    const std::vector<int>& uses = uses_.of(k);
    const auto here = std::count_if(uses.begin(), uses.end(), [&](int use) { return use < end_; });
    if (here > uses_in_registers(k)) {
      save(k);
    }
    if (uses_.last(k) >= end_) {
      MapStep step{};
      step.op = MapOp::store;
      step.slot = -1;
      step.place = place_(k);
      emit(step);
      stretch_.at_zero_only = false;
    }
  }

  void total(int k) {
    bring(program_[k].src);
    const bool at_zero = program_[k].op == ConvOp::trace;
    MapStep step{};
    step.op = MapOp::sum;
    step.slot = stretch_.sums++;
    step.flags = at_zero ? kAtZero : 0;
    fits_ = fits_ && stretch_.sums <= kMaxSums;
    emit(step);
    stretch_.at_zero_only = stretch_.at_zero_only && at_zero;
  }

  void bring(int reg) {
    if (reg != current_) {
      MapStep step{};
      step.op = MapOp::load;
      set_operand(step, reg);
      emit(step);
      current_ = reg;
    }
  }

  void set_operand(MapStep& step, int reg) const {
    const auto at = slot_of_.find(reg);
    step.slot = at == slot_of_.end() ? -1 : at->second;
    step.place = reg < 0 ? -1 : inside(reg) ? 0 : place_(reg);
  }

  void save(int reg) {
    int slot = used_slots_;
    if (free_.empty()) {
      ++used_slots_;
    } else {
      slot = free_.back();
      free_.pop_back();
    }
    fits_ = fits_ && used_slots_ <= kMaxSlots;
    slot_of_[reg] = slot;
    MapStep step{};
    step.op = MapOp::save;
    step.slot = slot;
    emit(step);
  }

  void free_slots(int k) {
    for (auto at = slot_of_.begin(); at != slot_of_.end();) {
      const std::vector<int>& uses = uses_.of(at->first);
      const bool read_again = std::any_of(uses.begin(), uses.end(), [&](int use) { return use > k && use < end_; });
      if (read_again) {
        ++at;
      } else {
        free_.push_back(at->second);
        at = slot_of_.erase(at);
      }
    }
  }

  MapStep step_of(const Instruction& code) const {
    switch (code.op) {
      case ConvOp::input:
      case ConvOp::constant: {
        MapStep step{};
        step.op = code.op == ConvOp::input ? MapOp::input : MapOp::constant;
        step.first = code.first;
        step.channels = static_cast<int32_t>(code.channels);
        step.flags = flags_of(code);
        step.scale = code.scale;
        return step;
      }
      case ConvOp::add: {
        MapStep step{};
        step.op = MapOp::add;
        set_operand(step, code.src2);
        step.scale = code.scale;
        step.scale2 = code.scale2;
        step.constant = code.constant;
        return step;
      }
      default:  // A gate has the window of one pixel.
        return box_step(code);
    }
  }

  static MapStep box_step(const Instruction& code) {
    MapStep step{};
    step.op = MapOp::box;
    step.first = code.first;
    step.used = used_words(code);
    step.stride = mask_stride(code);
    step.flags = flags_of(code);
    step.kernel_y = code.kernel.y;
    step.kernel_x = code.kernel.x;
    step.pad_y = code.pad.y;
    step.pad_x = code.pad.x;
    step.dilation_y = code.dilation.y;
    step.dilation_x = code.dilation.x;
    step.scale = code.scale;
    step.constant = code.constant;
    return step;
  }

  const std::vector<Instruction>& program_;
  const Uses& uses_;
  int item_, begin_, end_;
  const Place& place_;
  Stretch stretch_{};
  bool fits_ = true;
  // The map holds this register.
  int current_ = -1;
  int used_slots_ = 0;
  std::map<int, int> slot_of_;
  std::vector<int> free_;
};

}  // namespace

std::optional<Stretch> make_stretch(
    const std::vector<Instruction>& program, const Uses& uses, int item, int begin, int end,
    const std::function<int64_t(int)>& place) {
  return StretchMaker(program, uses, item, begin, end, place).make();
}

}  // namespace gatedops::cuda
