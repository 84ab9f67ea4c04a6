#include "plan.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "placement.h"

namespace gatedops::cpu {
namespace {

// The displacements that a segment visits: all at which a sink or a stored register has pixels.
void set_range(const Plan& plan, Segment& s) {
  s.step = {0, 0};
  const auto visit = [&s](const Register& r, bool only_zero) {
    s.step = {std::gcd(s.step.y, r.lattice.y), std::gcd(s.step.x, r.lattice.x)};
    if (!only_zero) {
      const int whole = s.cyclic() ? 0 : 1;
      s.range.y = std::max(s.range.y, r.lattice.y * r.code.out.y - r.lattice.y * whole - (1 - whole));
      s.range.x = std::max(s.range.x, r.lattice.x * r.code.out.x - r.lattice.x * whole - (1 - whole));
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

// Maps that are read for the last time give their slot to later ones.
void assign_slots(Plan& plan, const Segment& s) {
  std::map<int, int> last_read;  // register -> position in s.local
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

}  // namespace gatedops::cpu
