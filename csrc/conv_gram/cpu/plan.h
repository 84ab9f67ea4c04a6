// How a conv_gram program is run: what all tiles of a call share.
//
// The program is cut into segments at its sinks (pools), whose kernels mix displacements p' - p. Inside a segment every
// displacement is computed on its own, through all instructions.
#pragma once

#include <utility>
#include <vector>

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

  // Numbers of the kernel of one x, if it is stored: [displacement modulo the size][pixel][kPairs].
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

inline BoxAxis window_y(const Instruction& i) {
  return {i.kernel.y, i.stride.y, i.pad.y, i.dilation.y};
}
inline BoxAxis window_x(const Instruction& i) {
  return {i.kernel.x, i.stride.x, i.pad.x, i.dilation.x};
}

// The windows that each pixel of one axis falls into: (output pixel, place in the window).
class Windows {
 public:
  Windows(int in, int out, const BoxAxis& window);

  // All ways in which the pixels of a map fall into the windows of a sink.
  void taps(const Axis& axis, std::vector<PoolTap>& taps) const;

 private:
  std::vector<std::vector<std::pair<int, int>>> of_;
  int out_;
};

struct SinkWindows {
  Windows y, x;
  explicit SinkWindows(const Instruction& i) : y(i.in.y, i.out.y, window_y(i)), x(i.in.x, i.out.x, window_x(i)) {}
};

// What a register reads of a row of y, and where a panel holds it.
struct PanelPart {
  int64_t first;              // column of x, or word
  int64_t positions, stride;  // words of a row between positions; of an input: channels
  int64_t used;               // of them, words that hold gates
  int64_t at;                 // position in the panel, in numbers or words
};

struct PanelLayout {
  explicit PanelLayout(const Plan& plan);

  std::vector<PanelPart> parts;
  std::vector<int> part_of;  // of a register; -1: reads nothing
  int64_t numbers = 0, words = 0;
};

struct ConvProblem {
  explicit ConvProblem(const std::vector<Instruction>& program);

  Plan plan;
  PanelLayout layout;
  std::vector<SinkWindows> windows;  // of each register, empty but for pools
};

}  // namespace gatedops::cpu
