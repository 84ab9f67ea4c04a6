// The program of a conv_gram op, for every device: instructions on registers, without branches. A register is a kernel
// K(p, p') between the pixels of two inputs. gatedops/ops/conv_program.py describes the instructions. decode_program
// makes sure that no access to memory leaves a tensor.
#pragma once

#include <cstdint>
#include <vector>

namespace gatedops {

constexpr int kMaxWindow = 64;  // A box's window has at most this many rows and columns.

enum class ConvOp { input, box, gate, select, pool, add, constant, trace, masked_box, resample };

struct Extent {
  int y = 1, x = 1;
  int64_t area() const {
    return static_cast<int64_t>(y) * x;
  }
  bool operator==(const Extent& o) const {
    return y == o.y && x == o.x;
  }
};

struct Instruction {
  ConvOp op;
  int src, src2;
  double scale = 1.0, scale2 = 0.0, constant = 0.0;
  // An input begins at this column of x, masks at this word; it is -1 if there is no gate.
  int64_t first;
  // The masks of the rows of y begin at this word.
  int64_t first_y;
  int64_t channels;
  Extent in, out;
  Extent kernel, stride, pad, dilation;
  bool circular;
  bool same_row, same_column;
  // A pool has a weight for each output pixel; if there are none, all are 1.
  std::vector<double> weights;
  // A resampling has weights rows[r, r'] (out.y x in.y) and columns[q, q'] (out.x x in.x), row by row.
  std::vector<double> rows, columns;

  bool masked() const {
    return op == ConvOp::gate || op == ConvOp::select || op == ConvOp::masked_box || (op == ConvOp::box && first >= 0);
  }
  // Tells whether both sides move by the same offsets in a window, so that displacements do not mix.
  bool boxed() const {
    return op == ConvOp::box || op == ConvOp::masked_box;
  }
  // Tells whether this is a sink, which reads a whole kernel, because the pixels of both sides move independently.
  bool sink() const {
    return op == ConvOp::pool || op == ConvOp::select || op == ConvOp::resample || op == ConvOp::trace;
  }
  bool pointwise() const {
    return kernel.area() == 1 && pad.y == 0 && pad.x == 0;
  }
  // Tells whether the result is one sum: over all pairs of pixels or, for a trace, over the pairs of equal pixels.
  bool total() const {
    return op == ConvOp::trace ||
           (op == ConvOp::pool && out.area() == 1 && kernel == in && pad == Extent{0, 0} && dilation == Extent{1, 1});
  }
  int64_t positions() const {
    return out.area() * (op == ConvOp::select || op == ConvOp::masked_box ? kernel.area() : 1);
  }
};

// The numbers that encode one instruction, in their order. The fields of Instruction in gatedops/ops/conv_program.py
// have the same names. tests/conv_gram/test_conv_program.py compares both lists of fields, and both of operations.
enum class Field {
  op,
  dst,
  src,
  src2,
  scale,
  scale2,
  constant,
  first,
  channels,
  height,
  width,
  out_height,
  out_width,
  kernel_h,
  kernel_w,
  stride_h,
  stride_w,
  pad_top,
  pad_left,
  dilation_h,
  dilation_w,
  circular,
  pattern,
  first_y,
  count
};

constexpr int64_t kInstructionFields = static_cast<int64_t>(Field::count);
constexpr int64_t kMaxExtent = 1024;  // An image has at most this many pixels along one axis.
constexpr int64_t kMaxInstructions = 4096;

// Decodes a program that may read x (n, columns) and words (n, words). Throws std::invalid_argument, which names what
// is wrong.
std::vector<Instruction> decode_program(
    const std::vector<int64_t>& program, const std::vector<double>& scalars, int64_t columns, int64_t words);

}  // namespace gatedops
