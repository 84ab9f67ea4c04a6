// Decodes a program and checks each of its numbers. Errors name the instruction and what is wrong.
#include "program.h"

#include <algorithm>
#include <string>

#include "core/require.h"
#include "gates/layout.h"

namespace gatedops {
namespace {

// The fields of one instruction. Every error names the instruction.
class Fields {
 public:
  Fields(const int64_t* fields, int64_t index, const std::vector<double>& scalars)
      : f_(fields), index_(index), scalars_(scalars) {}

  void check(bool condition, const std::string& what) const {
    require(condition, "program: instruction " + std::to_string(index_) + " " + what);
  }
  int64_t at(Field field) const {
    return f_[static_cast<int>(field)];
  }
  int bounded(Field field, int64_t low, int64_t high, const char* name) const {
    check(
        at(field) >= low && at(field) <= high, "has " + std::string(name) + " " + std::to_string(at(field)) +
                                                   ", needs " + std::to_string(low) + " to " + std::to_string(high));
    return static_cast<int>(at(field));
  }
  Extent extent(Field y, Field x, int64_t low, int64_t high, const char* name) const {
    return {bounded(y, low, high, name), bounded(x, low, high, name)};
  }
  double scalar(Field field, const char* name) const {
    return scalars_[bounded(field, 0, static_cast<int64_t>(scalars_.size()) - 1, name)];
  }
  // Returns `count` scalars, from scalar `first` on.
  std::vector<double> weights(int64_t first, int64_t count) const {
    check(
        first >= 0 && first <= static_cast<int64_t>(scalars_.size()) - count,
        "needs " + std::to_string(count) + " weights in scalars");
    return {scalars_.begin() + first, scalars_.begin() + first + count};
  }

 private:
  const int64_t* f_;
  int64_t index_;
  const std::vector<double>& scalars_;
};

// Tells whether a window of one pixel never leaves the image.
bool inside(const Instruction& i) {
  return int64_t{i.stride.y} * (i.out.y - 1) < i.in.y && int64_t{i.stride.x} * (i.out.x - 1) < i.in.x;
}

void decode_window(const Fields& f, Instruction& i) {
  if (i.boxed() || i.op == ConvOp::select || i.op == ConvOp::pool) {
    i.kernel = f.extent(Field::kernel_h, Field::kernel_w, 1, i.boxed() ? kMaxWindow : kMaxExtent, "kernel");
    i.stride = f.extent(Field::stride_h, Field::stride_w, 1, kMaxExtent, "stride");
    i.pad = f.extent(Field::pad_top, Field::pad_left, -kMaxExtent, kMaxExtent, "padding");
    i.dilation = f.extent(Field::dilation_h, Field::dilation_w, 1, kMaxExtent, "dilation");
    const bool circular = i.boxed() && f.bounded(Field::circular, 0, 1, "circular") == 1;
    i.circular = circular && !(i.pointwise() && inside(i));
    return;
  }
  i.kernel = i.stride = i.dilation = {1, 1};
  i.pad = {0, 0};
  i.circular = false;
}

void decode_memory(const Fields& f, int64_t columns, int64_t words, Instruction& i) {
  i.first = f.at(Field::first);
  i.channels = f.at(Field::channels);
  if (i.op == ConvOp::input) {
    f.check(
        i.first >= 0 && i.channels >= 1 && i.channels <= columns && i.first <= columns - i.channels * i.out.area(),
        "reads columns outside x");
  }
  if (i.masked()) {
    i.first_y = f.at(Field::first_y) == -1 ? i.first : f.at(Field::first_y);
    const std::string outside = "reads words outside the rows";
    f.check(i.channels >= 1 && i.channels <= 32 * words, outside);
    const int64_t per_position = words_per_position(i.positions(), i.channels);
    f.check(
        i.positions() <= words / per_position && std::min(i.first, i.first_y) >= 0 &&
            std::max(i.first, i.first_y) <= words - i.positions() * per_position,
        outside);
  }
}

void decode_scalars(const Fields& f, Instruction& i) {
  i.scale = f.scalar(Field::scale, "scale");
  if (i.op == ConvOp::add && i.src2 >= 0) {
    i.scale2 = f.scalar(Field::scale2, "scale2");
  }
  const int64_t first = f.at(Field::scale2);
  if (i.op == ConvOp::pool && first >= 0) {
    i.weights = f.weights(first, i.out.area());
  }
  if (i.op == ConvOp::resample) {
    const int64_t rows = int64_t{i.out.y} * i.in.y, columns = int64_t{i.out.x} * i.in.x;
    const std::vector<double> both = f.weights(first, rows + columns);
    i.rows.assign(both.begin(), both.begin() + rows);
    i.columns.assign(both.begin() + rows, both.end());
  }
  if ((i.op == ConvOp::box || i.op == ConvOp::add) && f.at(Field::constant) >= 0) {
    i.constant = f.scalar(Field::constant, "constant");
  }
}

void decode_sources(const Fields& f, int64_t index, const std::vector<Instruction>& earlier, Instruction& i) {
  const bool reads = i.op != ConvOp::input && i.op != ConvOp::constant;
  i.src = reads ? f.bounded(Field::src, 0, index - 1, "src") : -1;
  i.src2 = i.op == ConvOp::add ? f.bounded(Field::src2, -1, index - 1, "src2") : -1;
  i.out = i.op == ConvOp::trace ? Extent{1, 1}
                                : f.extent(Field::out_height, Field::out_width, 1, kMaxExtent, "output size");
  i.in = reads ? f.extent(Field::height, Field::width, 1, kMaxExtent, "input size") : i.out;
  for (const int src : {i.src, i.src2}) {
    f.check(src < 0 || earlier[src].out == i.in, "reads a register of another size");
  }
  f.check(!(i.op == ConvOp::gate || i.op == ConvOp::add) || i.in == i.out, "needs the same input and output size");
}

}  // namespace

std::vector<Instruction> decode_program(
    const std::vector<int64_t>& program, const std::vector<double>& scalars, int64_t columns, int64_t words) {
  const auto count = static_cast<int64_t>(program.size()) / kInstructionFields;
  require(
      count >= 1 && count <= kMaxInstructions && static_cast<int64_t>(program.size()) == count * kInstructionFields,
      "program: got " + std::to_string(program.size()) + " numbers, needs " + std::to_string(kInstructionFields) +
          " for each of 1 to " + std::to_string(kMaxInstructions) + " instructions");
  std::vector<Instruction> instructions;
  for (int64_t index = 0; index < count; ++index) {
    const Fields f(program.data() + index * kInstructionFields, index, scalars);
    Instruction i{};
    i.op = static_cast<ConvOp>(f.bounded(Field::op, 0, static_cast<int64_t>(ConvOp::resample), "op"));
    f.bounded(Field::dst, index, index, "dst");
    decode_sources(f, index, instructions, i);
    decode_window(f, i);
    decode_memory(f, columns, words, i);
    decode_scalars(f, i);
    const int pattern = i.op == ConvOp::constant ? f.bounded(Field::pattern, 0, 3, "pattern") : 0;
    i.same_row = (pattern & 1) != 0;
    i.same_column = (pattern & 2) != 0;
    instructions.push_back(i);
  }
  require(instructions.back().out.area() == 1, "program: the last register needs 1 x 1 pixels");
  return instructions;
}

}  // namespace gatedops
