// How a conv_gram program is run: cut into segments at the sinks (pools), whose kernels mix displacements p' - p.
// Inside a segment every displacement is computed on its own, through all instructions.
#pragma once

#include "kernels.h"

namespace gatedops::cpu {

// A displacement, in pixels of the segment.
struct Shift {
  int y, x;
};

// A register of the program. Inputs and constants are made once in every segment that reads them.
struct Register {
  Instruction code;     // src and src2 are indices of Plan::registers
  int segment;          // that computes it; of a sink, that feeds it
  Extent lattice;       // pixels of the segment between two of its pixels
  bool stored = false;  // for all displacements: sinks, and what a later segment reads
  int64_t place = 0;    // stored: its first number in the store; else its slot

  // Of the kernel of one x, where stored; [displacement modulo the size][pixel][kPairs].
  int64_t numbers() const {
    return code.total() ? kPairs : code.out.area() * code.out.area() * kPairs;
  }
};

struct Segment {
  // linear: displacements -range .. range. cyclic, where boxes wrap round: 0 .. range, modulo range + 1.
  enum class Mode { open, linear, cyclic } mode = Mode::open;
  std::vector<int> local;  // registers computed at every displacement, in order
  std::vector<int> sinks;  // registers fed with every displacement
  Extent step{1, 1}, range{0, 0};

  bool cyclic() const {
    return mode == Mode::cyclic;
  }
};

struct Plan {
  explicit Plan(const std::vector<Instruction>& program);

  std::vector<Register> registers;
  std::vector<Segment> segments;
  int result = 0;             // register
  int slots = 0;              // maps that live at once
  int64_t slot_numbers = 0;   // in the largest map
  int64_t store_numbers = 0;  // in all stored registers of one x
  int64_t row_numbers = 0;    // in the longest padded row of a box
};

inline int modulo(int a, int n) {
  const int r = a % n;
  return r < 0 ? r + n : r;
}

}  // namespace gatedops::cpu
