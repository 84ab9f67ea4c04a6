// Makes consecutive instructions of a conv_gram program one stretch: steps on one map in registers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "conv_gram/program.h"
#include "gates/layout.h"
#include "steps.h"

namespace gatedops::cuda {

// Lists the instructions that read each register.
class Uses {
 public:
  explicit Uses(const std::vector<Instruction>& program) : of_(program.size()) {
    for (size_t k = 0; k < program.size(); ++k) {
      for (const int src : {program[k].src, program[k].src2}) {
        if (src >= 0) {
          of_[src].push_back(static_cast<int>(k));
        }
      }
    }
    of_.back().push_back(static_cast<int>(program.size()));  // The result is read after the program.
  }
  const std::vector<int>& of(int reg) const {
    return of_[reg];
  }
  int last(int reg) const {
    return of_[reg].empty() ? reg : of_[reg].back();
  }

 private:
  std::vector<std::vector<int>> of_;
};

inline int used_words(const Instruction& code) {
  return code.masked() ? static_cast<int>((code.channels + 31) / 32) : 0;
}
inline int mask_stride(const Instruction& code) {
  return code.masked() ? static_cast<int>(words_per_position(code.positions(), code.channels)) : 0;
}
inline int32_t flags_of(const Instruction& code) {
  return (code.circular ? kCircular : 0) | (code.same_row ? kSameRow : 0) | (code.same_column ? kSameColumn : 0);
}

// Tells whether an instruction acts on each displacement by itself, on maps that fit registers.
inline bool stays_on_map(const Instruction& code) {
  const bool fits = code.out.area() > 1 && code.out.y <= kMapEdge && code.out.x <= kMapEdge;
  const bool moves = code.op == ConvOp::box && !(code.stride == Extent{1, 1} && code.in == code.out);
  return fits && !moves && !code.sink();
}

// Makes the stretch of program[begin .. end). All its instructions stay on maps of one size, or are totals of such
// maps. Returns nothing if a stretch does not have enough steps, slots or sums for them. `item` is the bytes of a
// number; `place` gives the place of a register in the store.
std::optional<Stretch> make_stretch(
    const std::vector<Instruction>& program, const Uses& uses, int item, int begin, int end,
    const std::function<int64_t(int)>& place);

}  // namespace gatedops::cuda
