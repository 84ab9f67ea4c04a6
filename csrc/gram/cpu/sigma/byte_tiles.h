// Rows of bytes in the order in which the tile registers of AMX take them (amx.cpp). A register holds 16 rows of x, or
// 16 rows of y side by side, and a step of 64 bytes of each:
//
//   of x   byte b of row r lies at byte 64 r + b
//   of y   byte b of row r lies at byte 64 (b / 4) + 4 r + b % 4
//
// The registers of a group of 16 rows follow each other, step by step, and within a step digit by digit if a number has
// several. Bytes past the last of a row are zeros. Rows past the last hold anything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

namespace gatedops::cpu {

constexpr int kGroupRows = 16;
constexpr int kStepBytes = 64;
constexpr int kRegisterBytes = kGroupRows * kStepBytes;

enum class TileSide { kX, kY };

class ByteTiles {
 public:
  ByteTiles() = default;
  // Makes room for rows of `cols` numbers of `digits` bytes.
  ByteTiles(TileSide side, int64_t rows, int64_t cols, int digits)
      : side_(side), digits_(digits), steps_((cols + kStepBytes - 1) / kStepBytes) {
    const int64_t pairs_of_groups = (rows + 2 * kGroupRows - 1) / (2 * kGroupRows);
    memory_.reset(new uint8_t[static_cast<size_t>(2 * pairs_of_groups * group_bytes() + kStepBytes)]);
  }

  // Returns the first register of the group of 16 rows that begins with this row.
  const uint8_t* group_of(int64_t row) const {
    return const_cast<ByteTiles*>(this)->start_of(row);
  }
  int64_t steps() const {
    return steps_;
  }
  // Returns the bytes of the registers of a group.
  int64_t group_bytes() const {
    return steps_ * digits_ * kRegisterBytes;
  }

  // Writes the bytes of a row, `digit` of each number, in the order of x.
  void write(int64_t row, int digit, const uint8_t* bytes, int64_t count) {
    uint8_t* to = start_of(row) + digit * kRegisterBytes + row % kGroupRows * kStepBytes;
    for (int64_t at = 0; at < count; at += kStepBytes, to += digits_ * kRegisterBytes) {
      const auto here = static_cast<size_t>(std::min<int64_t>(kStepBytes, count - at));
      std::memcpy(to, bytes + at, here);
      std::memset(to + here, 0, kStepBytes - here);
    }
  }

  // Copies a group of 16 rows of x.
  void copy(const ByteTiles& x, int64_t group) {
    std::memcpy(start_of(group * kGroupRows), x.group_of(group * kGroupRows), static_cast<size_t>(group_bytes()));
  }

  // Brings the registers of a group, whose rows are all written, into the order of their side. `turn` transposes
  // registers of 16 x 16 words.
  template <class Turn>
  void finish(int64_t group, const Turn& turn) {
    if (side_ == TileSide::kY) {
      turn(start_of(group * kGroupRows), steps_ * digits_);
    }
  }

 private:
  uint8_t* start_of(int64_t row) {
    return aligned() + row / kGroupRows * group_bytes();
  }
  uint8_t* aligned() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return reinterpret_cast<uint8_t*>((address + kStepBytes - 1) / kStepBytes * kStepBytes);
  }

  TileSide side_ = TileSide::kX;
  int digits_ = 1;
  int64_t steps_ = 0;
  // Threads write it first, each its own rows, so that they share the time in which the system makes pages.
  std::unique_ptr<uint8_t[]> memory_;
};

// The rows of a tile of Sigma: it begins at row i of x and row j of y, and takes these steps of them.
struct ByteSpan {
  int64_t i, j;
  int rows, cols;
  int64_t step, steps;
};

// At most this many steps are multiplied at a time: 32,768 products of unsigned bytes are less than 2^31 together.
constexpr int64_t kMostSteps = 512;

// The next three functions run on AMX alone (amx.cpp).
//
// Transposes this many registers, each as 16 x 16 words of four bytes.
void turn_registers_on_amx(uint8_t* registers, int64_t count);

// Sets out (rows, cols), with kTileStride, to the inner products of rows of unsigned bytes.
void multiply_bytes_on_amx(const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, int32_t* out);

// Sets out to the inner products of rows of numbers of three signed digits, times x_scale of the row and y_scale of the
// column, which are those of the tile's first row and column. The span has all steps.
void multiply_digits_on_amx(
    const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, const double* x_scale, const double* y_scale,
    float* out);

}  // namespace gatedops::cpu
