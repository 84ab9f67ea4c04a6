// Makes the plan of a conv_gram program. It says which segment computes each instruction, at which displacements, and
// where the results lie in memory.
#include "plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>

#include "core/require.h"
#include "gates/layout.h"

namespace gatedops::cpu {
namespace {

// At most this many pixels of the network's input lie between two pixels of a register.
constexpr int kMaxLattice = 4096;

Extent times(Extent a, Extent b) {
  return {a.y * b.y, a.x * b.x};
}

// Chooses the segment that computes each instruction: the earliest that the instruction's sources and the segment's
// mode allow.
class Placement {
  using Mode = Segment::Mode;

 public:
  explicit Placement(Plan& plan) : registers_(plan.registers), segments_(plan.segments) {}

  int place_all(const std::vector<Instruction>& program) {
    for (const Instruction& code : program) {
      program_.push_back(code);
      placed_.push_back(made_where_read(code) ? -1 : place(code));
    }
    const int last = static_cast<int>(program.size()) - 1;
    return placed_[last] >= 0 ? placed_[last] : copy_of(last, 0, {1, 1});
  }

 private:
  static bool made_where_read(const Instruction& code) {
    return code.op == ConvOp::input || code.op == ConvOp::constant;
  }

  bool made_where_read(int instruction) const {
    return instruction >= 0 && placed_[instruction] < 0;
  }

  int place(const Instruction& code) {
    int segment = 0;
    for (const int src : {code.src, code.src2}) {
      segment = std::max(segment, available(src));
    }
    while (!fits(code, segment)) {
      ++segment;
    }
    Instruction resolved = code;
    const Extent lattice = lattice_of(code, segment);
    resolved.src = source(code, code.src, segment, lattice);
    resolved.src2 = source(code, code.src2, segment, lattice);
    segment_at(segment).mode = mode_with(code, segment);
    return add(resolved, segment, code.sink() ? pooled_lattice(code, lattice) : lattice);
  }

  // If there is one output pixel, its only displacement is 0. Any lattice serves then, and 1 keeps products small.
  // Pixels of a resampling have no places among those of its source, so that its displacements count its own pixels.
  static Extent pooled_lattice(const Instruction& pool, Extent lattice) {
    if (pool.op == ConvOp::resample) {
      return {1, 1};
    }
    return {pool.out.y == 1 ? 1 : lattice.y * pool.stride.y, pool.out.x == 1 ? 1 : lattice.x * pool.stride.x};
  }

  int add(const Instruction& code, int segment, Extent lattice) {
    require(std::max(lattice.y, lattice.x) <= kMaxLattice, "program: the strides multiply to more than 4096");
    Segment& s = segment_at(segment);
    const int index = static_cast<int>(registers_.size());
    registers_.push_back({code, segment, lattice, code.sink()});
    (code.sink() ? s.sinks : s.local).push_back(index);
    return index;
  }

  Segment& segment_at(int segment) {
    if (static_cast<int>(segments_.size()) <= segment) {
      segments_.resize(segment + 1);
    }
    return segments_[segment];
  }

  // Returns the first segment that can read the result of an instruction.
  int available(int instruction) const {
    if (instruction < 0 || made_where_read(instruction)) {
      return 0;
    }
    const Register& r = registers_[placed_[instruction]];
    return r.segment + (r.code.sink() ? 1 : 0);
  }

  // Tells whether the segment itself computes the result of the instruction.
  bool local(int instruction, int segment) const {
    return made_where_read(instruction) || (instruction >= 0 && !registers_[placed_[instruction]].code.sink() &&
                                            registers_[placed_[instruction]].segment == segment);
  }

  // Returns how many pixels of the network's input lie from one pixel of the instruction's result to the next. Inputs
  // and constants have 1; a constant later takes the lattice of the register that it is added to.
  Extent lattice_of_source(int instruction) const {
    return made_where_read(instruction) ? Extent{1, 1} : registers_[placed_[instruction]].lattice;
  }

  bool is_constant(int instruction) const {
    return instruction >= 0 && program_[instruction].op == ConvOp::constant;
  }

  // Returns the lattice of the map that an instruction writes or, for a sink, reads.
  Extent lattice_of(const Instruction& code, int segment) const {
    const bool second =
        code.src2 >= 0 && (is_constant(code.src) || (!local(code.src, segment) && local(code.src2, segment)));
    const Extent lattice = lattice_of_source(second ? code.src2 : code.src);
    return code.boxed() ? times(lattice, code.stride) : lattice;
  }

  bool fits(const Instruction& code, int segment) const {
    if (code.src2 >= 0 && local(code.src, segment) && local(code.src2, segment) && !is_constant(code.src) &&
        !is_constant(code.src2)) {
      const Extent a = lattice_of_source(code.src), b = lattice_of_source(code.src2);
      if ((a.y != b.y && code.in.y > 1) || (a.x != b.x && code.in.x > 1)) {
        return false;  // Branches of different stride meet, so a later segment reads them from the store.
      }
    }
    const Mode mode = mode_with(code, segment);
    if (code.boxed() && !box_fits(code, segment, mode)) {
      return false;
    }
    return mode != Mode::cyclic || all_wrap_alike(segment, times(code.in, input_lattice(code, segment)));
  }

  Extent input_lattice(const Instruction& code, int segment) const {
    const Extent lattice = lattice_of(code, segment);
    return code.boxed() ? Extent{lattice.y / code.stride.y, lattice.x / code.stride.x} : lattice;
  }

  static bool closed(const Instruction& box) {
    return box.in == times(box.stride, box.out);
  }

  Mode mode_of(int segment) const {
    return segment < static_cast<int>(segments_.size()) ? segments_[segment].mode : Mode::open;
  }

  // Returns the mode that the segment has if the instruction joins it.
  Mode mode_with(const Instruction& code, int segment) const {
    const Mode mode = mode_of(segment);
    if (mode != Mode::open || !code.boxed() || (code.pointwise() && closed(code))) {
      return mode;
    }
    return code.circular && closed(code) ? Mode::cyclic : Mode::linear;
  }

  // Tells whether a segment of this mode can compute a box. A map of linear displacements lacks the pixels that wrap
  // round, so that a box that wraps round reads a cyclic map or the store.
  bool box_fits(const Instruction& box, int segment, Mode mode) const {
    if (box.pointwise() && closed(box)) {
      return true;
    }
    if (mode == Mode::cyclic) {
      return box.circular && closed(box);
    }
    return !box.circular || !local(box.src, segment) || (made_where_read(box.src) && home_of(box.src, segment) >= 0);
  }

  // Returns a segment before this one that can store an input or constant, or -1 if there is none.
  int home_of(int instruction, int segment) const {
    for (int home = 0; home < segment; ++home) {
      if (mode_of(home) != Mode::cyclic || all_wrap_alike(home, program_[instruction].out)) {
        return home;
      }
    }
    return -1;
  }

  // Tells whether all maps of a segment have this size, because cyclic displacements are counted modulo one size.
  bool all_wrap_alike(int segment, Extent size) const {
    if (segment >= static_cast<int>(segments_.size())) {
      return true;
    }
    const Segment& s = segments_[segment];
    return std::all_of(
               s.local.begin(), s.local.end(),
               [&](int r) { return times(registers_[r].code.out, registers_[r].lattice) == size; }) &&
           std::all_of(s.sinks.begin(), s.sinks.end(), [&](int r) {
             const Register& src = registers_[registers_[r].code.src];
             return times(src.code.out, src.lattice) == size;
           });
  }

  int source(const Instruction& code, int instruction, int segment, Extent lattice) {
    if (instruction < 0) {
      return -1;
    }
    if (!made_where_read(instruction)) {
      Register& r = registers_[placed_[instruction]];
      r.stored = r.stored || r.segment != segment;
      return placed_[instruction];
    }
    const bool from_store = code.circular && mode_with(code, segment) != Mode::cyclic;
    const bool adopts = is_constant(instruction) && code.op == ConvOp::add;
    const int index =
        copy_of(instruction, from_store ? home_of(instruction, segment) : segment, adopts ? lattice : Extent{1, 1});
    registers_[index].stored = registers_[index].stored || from_store;
    return index;
  }

  int copy_of(int instruction, int segment, Extent lattice) {
    const auto [at, is_new] = copies_.try_emplace({instruction, segment, lattice.y, lattice.x}, 0);
    if (is_new) {
      at->second = add(program_[instruction], segment, lattice);
    }
    return at->second;
  }

  std::vector<Register>& registers_;
  std::vector<Segment>& segments_;
  std::vector<Instruction> program_;
  // The register of each instruction; it is -1 if each segment that reads it makes its own.
  std::vector<int> placed_;
  std::map<std::tuple<int, int, int, int>, int> copies_;
};

// Sets the displacements that a segment visits: all at which a sink or a stored register has pixels.
void set_range(const Plan& plan, Segment& s) {
  s.step = {0, 0};
  const auto last = [&s](int lattice, int out) { return s.cyclic() ? lattice * out - 1 : lattice * (out - 1); };
  const auto visit = [&s, &last](const Register& r, bool only_zero) {
    s.step = {std::gcd(s.step.y, r.lattice.y), std::gcd(s.step.x, r.lattice.x)};
    if (!only_zero) {
      s.range.y = std::max(s.range.y, last(r.lattice.y, r.code.out.y));
      s.range.x = std::max(s.range.x, last(r.lattice.x, r.code.out.x));
    }
  };
  for (const int r : s.local) {
    if (plan.registers[r].stored) {
      visit(plan.registers[r], false);
    }
  }
  for (const int r : s.sinks) {
    const Instruction& code = plan.registers[r].code;
    visit(plan.registers[code.src], code.op == ConvOp::trace);
  }
  s.step = {std::max(1, s.step.y), std::max(1, s.step.x)};
}

// Gives each map a slot. A map that is read for the last time leaves its slot to a later one.
void assign_slots(Plan& plan, const Segment& s) {
  // This maps a register to a position in s.local.
  std::map<int, int> last_read;
  for (size_t at = 0; at < s.local.size(); ++at) {
    for (const int src : {plan.registers[s.local[at]].code.src, plan.registers[s.local[at]].code.src2}) {
      last_read[src] = static_cast<int>(at);
    }
  }
  for (const int sink : s.sinks) {
    last_read[plan.registers[sink].code.src] = static_cast<int>(s.local.size());
  }
  std::vector<int> free;
  int slots = 0;
  for (size_t at = 0; at < s.local.size(); ++at) {
    Register& r = plan.registers[s.local[at]];
    if (!r.stored) {
      if (free.empty()) {
        free.push_back(slots++);
      }
      r.place = free.back();
      free.pop_back();
      plan.slot_numbers = std::max(plan.slot_numbers, r.code.out.area() * kPairs);
    }
    std::vector<int> sources{r.code.src};
    if (r.code.src2 != r.code.src) {
      sources.push_back(r.code.src2);
    }
    for (const int src : sources) {
      if (src >= 0 && last_read[src] == static_cast<int>(at) && !plan.registers[src].stored) {
        free.push_back(static_cast<int>(plan.registers[src].place));
      }
    }
  }
  plan.slots = std::max(plan.slots, slots);
}

}  // namespace

Plan::Plan(const std::vector<Instruction>& program) {
  result = Placement(*this).place_all(program);
  registers[result].stored = true;
  for (Register& r : registers) {
    if (r.stored) {
      r.place = store_numbers;
      store_numbers += r.numbers();
    }
    const Instruction& code = r.code;
    if (code.op == ConvOp::box) {
      const int64_t pixels = static_cast<int64_t>(code.stride.x) * (code.out.x - 1) +
                             static_cast<int64_t>(code.dilation.x) * (code.kernel.x - 1) + 1;
      row_numbers = std::max(row_numbers, pixels * kPairs);
    }
  }
  for (Segment& s : segments) {
    set_range(*this, s);
    assign_slots(*this, s);
  }
}

Windows::Windows(int in, int out, const BoxAxis& window) : of_(static_cast<size_t>(in)), out_(out) {
  for (int p = 0; p < out; ++p) {
    for (int k = 0; k < window.kernel; ++k) {
      const int64_t q = int64_t{p} * window.stride + int64_t{k} * window.dilation - window.pad;
      if (q >= 0 && q < in) {
        of_[static_cast<size_t>(q)].push_back({p, k, 1.0});
      }
    }
  }
}

Windows::Windows(int in, int out, const std::vector<double>& weights) : of_(static_cast<size_t>(in)), out_(out) {
  for (int p = 0; p < out; ++p) {
    for (int q = 0; q < in; ++q) {
      const double weight = weights[static_cast<size_t>(int64_t{p} * in + q)];
      if (weight != 0.0) {
        of_[q].push_back({p, 0, weight});
      }
    }
  }
}

void Windows::taps(const Axis& axis, std::vector<PoolTap>& taps) const {
  taps.clear();
  for (int q = axis.begin; q < axis.end; ++q) {
    for (const Reader& x : of_[q]) {
      for (const Reader& y : of_[axis.partner(q)]) {
        PoolTap tap{};
        tap.in = q;
        tap.out = x.out;
        tap.shift = modulo(y.out - x.out, out_);
        tap.partner = y.out;
        tap.mask = x.place;
        tap.mask_y = y.place;
        tap.weight = x.weight * y.weight;
        taps.push_back(tap);
      }
    }
  }
}

PanelLayout::PanelLayout(const Plan& plan) : part_of(plan.registers.size(), -1) {
  for (size_t r = 0; r < plan.registers.size(); ++r) {
    const Instruction& code = plan.registers[r].code;
    if (code.op == ConvOp::input) {
      part_of[r] = static_cast<int>(parts.size());
      PanelPart part{};
      part.first = part.first_y = code.first;
      part.positions = code.out.area();
      part.stride = part.used = code.channels;
      part.at = numbers;
      parts.push_back(part);
      numbers += code.out.area() * code.channels * kPairs;
    } else if (code.masked()) {
      part_of[r] = static_cast<int>(parts.size());
      PanelPart part{};
      part.first = code.first;
      part.first_y = code.first_y;
      part.positions = code.positions();
      part.stride = words_per_position(code.positions(), code.channels);
      part.used = (code.channels + 31) / 32;
      part.at = words;
      parts.push_back(part);
      words += code.positions() * part.used * kPairs;
    }
  }
}

ConvProblem::ConvProblem(const std::vector<Instruction>& program) : plan(program), layout(plan) {
  for (const Register& r : plan.registers) {
    windows.emplace_back(r.code.sink() && !r.code.total() ? r.code : Instruction{});
  }
}

}  // namespace gatedops::cpu
