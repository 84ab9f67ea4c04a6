// Sigma of float32 rows by digits of 8 bits, on units that multiply bytes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "source.h"

namespace gatedops::cpu {
namespace {

// Float32 rows as three signed digits of 8 bits for each number: x = scale * (2^16 h + 2^8 m + l), rounded. The scale
// is a power of two for each row, as small as the row's largest number allows.
class DigitRows {
 public:
  static constexpr int kDigits = 3;
  // The sums of 2 * kMostColumns products of two digits are less than 2^31.
  static constexpr int64_t kMostColumns = int64_t{1} << 15;
  // With fewer columns torch's product is as fast and more accurate.
  static constexpr int64_t kLeastColumns = 128;

  DigitRows(TileSide side, const Tensor& x)
      : tiles_(side, x.size(0), x.size(1), kDigits), scale_(static_cast<size_t>(x.size(0) + 2 * kGroupRows)) {
    const Matrix rows(x);
    std::atomic<bool> finite{true};
    torch::stable::parallel_for(0, (rows.rows + kGroupRows - 1) / kGroupRows, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(rows.cols);
      for (int64_t group = begin; group < end; ++group) {
        const int64_t first = group * kGroupRows, last = std::min(first + kGroupRows, rows.rows);
        for (int64_t i = first; i < last; ++i) {
          if (!write(rows, i, scratch)) {
            finite = false;
          }
        }
        tiles_.finish(group, active_kernels<TileKernels>().turn_registers);
      }
    });
    finite_ = finite;
  }

  // Makes the rows of y from the same rows of x.
  DigitRows(const DigitRows& x, const Tensor& rows)
      : tiles_(TileSide::kY, rows.size(0), rows.size(1), kDigits), scale_(x.scale_), finite_(x.finite_) {
    torch::stable::parallel_for(0, (rows.size(0) + kGroupRows - 1) / kGroupRows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        tiles_.copy(x.tiles_, group);
        tiles_.finish(group, active_kernels<TileKernels>().turn_registers);
      }
    });
  }

  // Tells whether all numbers are finite. Only such rows have digits.
  bool finite() const {
    return finite_;
  }
  const ByteTiles& tiles() const {
    return tiles_;
  }
  // Returns the scales from a row on, times 2^4.
  const double* scale(int64_t row) const {
    return scale_.data() + row;
  }

 private:
  // The largest number of three signed digits.
  static constexpr double kLargest = 127 * 65536.0 + 127 * 256 + 127;

  struct Scratch {
    explicit Scratch(int64_t cols) : values(static_cast<size_t>(cols)), whole(values.size()) {
      for (auto& digit : digits) {
        digit.resize(values.size());
      }
    }
    std::vector<float> values;
    std::vector<uint32_t> whole;
    std::vector<uint8_t> digits[kDigits];
  };

  bool write(const Matrix& x, int64_t i, Scratch& s) {
    read(x, i, s.values);
    const float largest = largest_of(s.values);
    if (!std::isfinite(largest)) {
      return false;
    }
    int exponent = 0;
    const double part = std::frexp(static_cast<double>(largest), &exponent);
    const int shift = (part * 0x1p23 <= kLargest ? 23 : 22) - exponent;
    split(s, std::ldexp(1.0, shift));
    for (int digit = 0; digit < kDigits; ++digit) {
      tiles_.write(i, digit, s.digits[digit].data(), x.cols);
    }
    scale_[i] = std::ldexp(16.0, -shift);
    return true;
  }

  static void read(const Matrix& x, int64_t i, std::vector<float>& values) {
    const auto* from = reinterpret_cast<const float*>(x.data) + i * x.row_stride;
    if (x.col_stride == 1) {
      std::copy_n(from, x.cols, values.data());
      return;
    }
    for (int64_t k = 0; k < x.cols; ++k) {
      values[k] = from[k * x.col_stride];
    }
  }

  // Returns the largest absolute value, or a value that is not finite if there is one. Floats without a sign are in the
  // order of their bits, and NaN comes last.
  static float largest_of(const std::vector<float>& values) {
    int32_t largest = 0;
    for (const float value : values) {
      int32_t bits = 0;
      std::memcpy(&bits, &value, sizeof bits);
      largest = std::max(largest, bits & INT32_MAX);
    }
    float found = 0;
    std::memcpy(&found, &largest, sizeof found);
    return found;
  }

  // Rounds the values times the factor to whole numbers and splits these. A signed digit is a byte of the whole number
  // plus 128 in every digit, with its highest bit turned.
  static void split(Scratch& s, double factor) {
    constexpr double kHalves = 0x808080;
    const size_t n = s.values.size();
    for (size_t k = 0; k < n; ++k) {
      s.whole[k] =
          static_cast<uint32_t>(static_cast<int32_t>(static_cast<double>(s.values[k]) * factor + (kHalves + 0.5)));
    }
    for (int digit = 0; digit < kDigits; ++digit) {
      const int shift = 8 * (kDigits - 1 - digit);
      for (size_t k = 0; k < n; ++k) {
        s.digits[digit][k] = static_cast<uint8_t>((s.whole[k] >> shift) ^ 0x80U);
      }
    }
  }

  ByteTiles tiles_;
  std::vector<double> scale_;
  bool finite_ = true;
};

// Sigma of float32 rows by their digits: eight exact products of bytes instead of one of floats (docs/math.md, section
// 15, has the bound of the error).
class DigitSigma final : public SigmaSource<float> {
 public:
  DigitSigma(DigitRows x, DigitRows y) : x_(std::move(x)), y_(std::move(y)) {}

  void fill(const TileRect& tile, SigmaScratch<float>&, float* sigma) const override {
    const ByteSpan span{tile.i, tile.j, tile.rows, tile.cols, 0, x_.tiles().steps()};
    multiply_(x_.tiles(), y_.tiles(), span, x_.scale(tile.i), y_.scale(tile.j), sigma);
  }

 private:
  decltype(TileKernels::multiply_digits) multiply_ = active_kernels<TileKernels>().multiply_digits;
  DigitRows x_, y_;
};

}  // namespace

std::unique_ptr<SigmaSource<float>> digit_sigma(const Tensor& x, const Tensor& y) {
  const bool floats = x.scalar_type() == ScalarType::Float && y.scalar_type() == ScalarType::Float;
  if (!floats || active_kernels<TileKernels>().multiply_digits == nullptr || x.size(1) > DigitRows::kMostColumns ||
      x.size(1) < DigitRows::kLeastColumns) {
    return nullptr;
  }
  DigitRows rows(TileSide::kX, x);
  const bool same = x.const_data_ptr() == y.const_data_ptr() && x.size(0) == y.size(0) && x.stride(0) == y.stride(0) &&
                    x.stride(1) == y.stride(1);
  DigitRows columns = same ? DigitRows(rows, x) : DigitRows(TileSide::kY, y);
  if (!rows.finite() || !columns.finite()) {
    return nullptr;
  }
  return std::make_unique<DigitSigma>(std::move(rows), std::move(columns));
}

}  // namespace gatedops::cpu
