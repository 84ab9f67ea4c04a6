// Rows of bytes in the order in which the tile registers of AMX take them (amx.cpp), packed once for all tiles of
// a Gram. A register holds 16 rows of x, or 16 rows of y side by side, and a step of 64 bytes of each:
//
//   of x   byte b of row r lies at byte 64 r + b
//   of y   byte b of row r lies at byte 64 (b / 4) + 4 r + b % 4
//
// The registers of a group of 16 rows follow each other, step by step, and within a step digit by digit if a number has
// several. Rows and bytes past the last are zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace gatedops::cpu {

constexpr int kGroupRows = 16;
constexpr int kStepBytes = 64;
constexpr int kRegisterBytes = kGroupRows * kStepBytes;

enum class TileSide { kX, kY };

class ByteTiles {
 public:
  // Makes room for rows of `cols` numbers of `digits` bytes.
  ByteTiles(TileSide side, int64_t rows, int64_t cols, int digits)
      : side_(side), digits_(digits), steps_((cols + kStepBytes - 1) / kStepBytes) {
    const int64_t pairs_of_groups = (rows + 2 * kGroupRows - 1) / (2 * kGroupRows);
    memory_.resize(static_cast<size_t>(2 * pairs_of_groups * group_bytes() + kStepBytes));
  }

  // Returns the first register of the group of 16 rows that begins with this row.
  const uint8_t* group_of(int64_t row) const {
    return const_cast<ByteTiles*>(this)->aligned() + row / kGroupRows * group_bytes();
  }
  int64_t steps() const {
    return steps_;
  }
  // Returns the bytes of the registers of a group.
  int64_t group_bytes() const {
    return steps_ * digits_ * kRegisterBytes;
  }

  // Writes the bytes of a row, `digit` of each number.
  void write(int64_t row, int digit, const uint8_t* bytes, int64_t count) {
    uint8_t* group = aligned() + row / kGroupRows * group_bytes() + digit * kRegisterBytes;
    const int64_t r = row % kGroupRows;
    for (int64_t at = 0; at < count; at += kStepBytes, group += digits_ * kRegisterBytes) {
      const int64_t here = count - at < kStepBytes ? count - at : kStepBytes;
      if (side_ == TileSide::kX) {
        std::memcpy(group + r * kStepBytes, bytes + at, static_cast<size_t>(here));
        continue;
      }
      for (int64_t b = 0; b < here; b += 4) {
        std::memcpy(
            group + b / 4 * kStepBytes + 4 * r, bytes + at + b, static_cast<size_t>(std::min<int64_t>(4, here - b)));
      }
    }
  }

 private:
  uint8_t* aligned() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return reinterpret_cast<uint8_t*>((address + kStepBytes - 1) / kStepBytes * kStepBytes);
  }

  TileSide side_;
  int digits_;
  int64_t steps_;
  std::vector<uint8_t> memory_;
};

// The rows of a tile of Sigma: it begins at row i of x and row j of y, and takes these steps of them.
struct ByteSpan {
  int64_t i, j;
  int rows, cols;
  int64_t step, steps;
};

// At most this many steps are multiplied at a time: 32,768 products of unsigned bytes are less than 2^31 together.
constexpr int64_t kMostSteps = 512;

// The next two functions run on AMX alone (amx.cpp).
//
// Sets out (rows, cols), with kTileStride, to the inner products of rows of unsigned bytes.
void multiply_bytes_on_amx(const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, int32_t* out);

// Sets out to the inner products of rows of numbers of three signed digits, times x_scale of the row and y_scale of the
// column, which are those of the tile's first row and column. The span has all steps.
void multiply_digits_on_amx(
    const ByteTiles& x, const ByteTiles& y, const ByteSpan& span, const double* x_scale, const double* y_scale,
    float* out);

}  // namespace gatedops::cpu
