// The plan by which a conv_gram program is run, which all tiles of a call share.
//
// The program is cut into segments at its sinks (pools), whose kernels mix displacements p' - p. Inside a segment every
// displacement goes through all instructions by itself.
#pragma once

#include <vector>

#include "kernels.h"

namespace gatedops::cpu {

// A displacement, in pixels of the segment.
struct Shift {
  int y, x;
};

// A register of the program. Inputs and constants are made once in every segment that reads them.
struct Register {
  // Its src and src2 are indices of Plan::registers.
  Instruction code;
  // This segment computes the register, or feeds it if it is a sink.
  int segment;
  // The lattice counts pixels of the segment from one pixel of the register to the next.
  Extent lattice;
  // All displacements of a sink, and of a register that a later segment reads, are stored.
  bool stored = false;
  // The place is its first number in the store if it is stored, else its slot.
  int64_t place = 0;

  // Returns how many numbers the kernel of one x has if it is stored: [displacement modulo the size][pixel][kPairs].
  int64_t numbers() const {
    return code.total() ? kPairs : code.out.area() * code.out.area() * kPairs;
  }
};

struct Segment {
  // A linear segment has displacements -range .. range. A cyclic one, whose boxes wrap round, has 0 .. range, modulo
  // range + 1. An open one may still become either.
  enum class Mode { open, linear, cyclic } mode = Mode::open;
  std::vector<int> local;  // These registers are computed at every displacement, in this order.
  std::vector<int> sinks;  // Every displacement is fed into these registers.
  Extent step{1, 1}, range{0, 0};

  bool cyclic() const {
    return mode == Mode::cyclic;
  }
};

struct Plan {
  explicit Plan(const std::vector<Instruction>& program);

  std::vector<Register> registers;
  std::vector<Segment> segments;
  // The result is in this register.
  int result = 0;
  // At most this many maps live at once.
  int slots = 0;
  // The largest map has this many numbers.
  int64_t slot_numbers = 0;
  // All stored registers of one x have this many numbers.
  int64_t store_numbers = 0;
  // The longest padded row of a box has this many numbers.
  int64_t row_numbers = 0;
};

inline BoxAxis window_y(const Instruction& i) {
  return {i.kernel.y, i.stride.y, i.pad.y, i.dilation.y};
}
inline BoxAxis window_x(const Instruction& i) {
  return {i.kernel.x, i.stride.x, i.pad.x, i.dilation.x};
}

// Lists, for each pixel of one axis, the output pixels that read it.
class Windows {
 public:
  Windows(int in, int out, const BoxAxis& window);
  // The weights of a resampling are laid out (out, in). An output pixel reads the pixels whose weights are not 0.
  Windows(int in, int out, const std::vector<double>& weights);

  // Lists all ways in which the pixels of a map fall into the windows of a sink.
  void taps(const Axis& axis, std::vector<PoolTap>& taps) const;

 private:
  struct Reader {
    // Output pixel `out` reads the pixel at this place in its window.
    int out, place;
    double weight;
  };

  std::vector<std::vector<Reader>> of_;
  int out_;
};

struct SinkWindows {
  Windows y, x;
  explicit SinkWindows(const Instruction& i)
      : y(i.op == ConvOp::resample ? Windows(i.in.y, i.out.y, i.rows) : Windows(i.in.y, i.out.y, window_y(i))),
        x(i.op == ConvOp::resample ? Windows(i.in.x, i.out.x, i.columns) : Windows(i.in.x, i.out.x, window_x(i))) {}
};

// What a register reads of a row of y, and where a panel holds it.
struct PanelPart {
  // An input begins at this column of both sides. Masks begin at this word of the rows of x, and at word first_y of
  // those of y.
  int64_t first, first_y;
  // An input has this many pixels, masks this many positions.
  int64_t positions;
  // The stride counts words from one position to the next; for an input it is the channels.
  int64_t stride;
  // This many words of a position hold gates; for an input it is the channels.
  int64_t used;
  // The place in the panel counts numbers or words.
  int64_t at;
};

struct PanelLayout {
  explicit PanelLayout(const Plan& plan);

  std::vector<PanelPart> parts;
  // The part of each register; it is -1 if the register reads nothing.
  std::vector<int> part_of;
  int64_t numbers = 0, words = 0;
};

struct ConvProblem {
  explicit ConvProblem(const std::vector<Instruction>& program);

  Plan plan;
  PanelLayout layout;
  // Each register has an entry, but only those of pools, selects and resamplings are used.
  std::vector<SinkWindows> windows;
};

}  // namespace gatedops::cpu
