// Compares the tile kernels for NEON with those in plain C++, bit for bit, and their counts with a loop over bits.
// It does not need torch. `make check-neon` compiles it for 64-bit Arm and runs it in an emulator.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "gram/cpu/kernels.h"

namespace gatedops::cpu {
namespace {

constexpr size_t kTileNumbers = size_t{kTile} * kTileStride;
int failures = 0;

void expect(bool right, const char* what, int rows, int cols, int words) {
  if (!right) {
    ++failures;
    std::printf("wrong: %s of %d x %d rows of %d words\n", what, rows, cols, words);
  }
}

// Rows of random words; in a few rows all bits are ones or all are zeros.
struct Rows {
  std::vector<uint32_t> words;
  int rows, stride;

  Rows(int rows, int stride, std::mt19937& random)
      : words(static_cast<size_t>(rows) * static_cast<size_t>(stride)), rows(rows), stride(stride) {
    for (int i = 0; i < rows; ++i) {
      for (int w = 0; w < stride; ++w) {
        words[static_cast<size_t>(i * stride + w)] = i % 7 == 3 ? ~0u : i % 7 == 5 ? 0u : random();
      }
    }
  }
  RowBlock block() const {
    return {words.data(), stride, rows};
  }
};

// The results of one set of kernels for one problem. Their memory has the same contents before.
struct Outcome {
  std::vector<int32_t> counts = std::vector<int32_t>(kTileNumbers, -1);
  std::vector<float> f32 = std::vector<float>(kTileNumbers, -1), stored = f32, turned = f32;
  std::vector<double> f64 = std::vector<double>(kTileNumbers, -1), sums = std::vector<double>(4 * kTile, 0);
  std::vector<uint64_t> above = std::vector<uint64_t>(4 * kBlock, 0);
  std::vector<int32_t> on = std::vector<int32_t>(2, -1);
};

struct Problem {
  const Rows &x, &y;
  std::vector<LayerPiece> pieces;
  bool lower;
};

Outcome run(const TileKernels& k, const Problem& p) {
  Outcome out;
  const PieceRange all{p.pieces.data(), p.pieces.data() + p.pieces.size(), 0};
  const int padded = (p.y.rows + k.strip - 1) / k.strip * k.strip;
  std::vector<uint32_t> panel(static_cast<size_t>(padded) * static_cast<size_t>(all.words() * k.planes));
  const float scale[] = {1.0f / 3, 1.0f / 7};
  const double scale64[] = {1.0 / 3, 1.0 / 7};
  std::vector<int32_t> open(kTileNumbers, 0);
  k.pack_panel(p.y.block(), all, panel.data());
  k.product_f32(p.x.block(), panel.data(), p.y.rows, all, p.lower, scale, open.data(), out.f32.data(), nullptr);
  k.product_f64(p.x.block(), panel.data(), p.y.rows, all, p.lower, scale64, open.data(), out.f64.data(), nullptr);
  const PieceRange first{p.pieces.data(), p.pieces.data() + 1, 0};
  k.pack_panel(p.y.block(), first, panel.data());
  k.count(p.x.block(), panel.data(), p.y.rows, first, p.lower, out.counts.data(), nullptr);
  const int rows = p.x.rows < kBlock ? p.x.rows : kBlock, cols = p.y.rows < kBlock ? p.y.rows : kBlock;
  k.store_f32(out.f32.data(), rows, cols, out.stored.data(), kTile, false);
  k.store_transposed_f32(out.f32.data(), rows, cols, out.turned.data(), kTile, true);
  const double v[] = {1, -2, 3, 0.5};
  std::vector<double> columns(4 * static_cast<size_t>(rows));
  for (size_t i = 0; i < columns.size(); ++i) {
    columns[i] = v[i % 4];
  }
  k.contract(out.f32.data(), rows, cols, columns.data(), 4, 4, out.sums.data());
  std::vector<float> limits(kBlock, out.f32[0]);
  k.find_above_f32(
      out.f32.data(), rows, cols, limits.data(), limits.data(), out.above.data(), out.above.data() + kBlock);
  std::vector<double> limits64(kBlock, out.f64[0]);
  k.find_above_f64(
      out.f64.data(), rows, cols, limits64.data(), limits64.data(), out.above.data() + 2 * kBlock,
      out.above.data() + 3 * kBlock);
  std::vector<int64_t> begin, words;
  for (const LayerPiece& piece : p.pieces) {
    begin.push_back(piece.first);
    words.push_back(piece.words);
  }
  k.row_counts(p.x.words.data(), begin.data(), words.data(), static_cast<int>(begin.size()), out.on.data());
  return out;
}

int32_t both_on(const Problem& p, int i, int j) {
  int32_t total = 0;
  for (int w = 0; w < p.pieces[0].words; ++w) {
    const uint32_t both =
        p.x.words[static_cast<size_t>(i * p.x.stride + w)] & p.y.words[static_cast<size_t>(j * p.y.stride + w)];
    for (int bit = 0; bit < 32; ++bit) {
      total += static_cast<int32_t>(both >> bit & 1);
    }
  }
  return total;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

void compare(int rows, int cols, int words, bool lower) {
  std::mt19937 random(static_cast<unsigned>(rows * 31 + cols * 7 + words));
  const Rows x(rows, 2 * words, random);
  const Rows other(cols, 2 * words, random);
  const Rows& y = lower ? x : other;
  const Problem p{x, y, {{0, 0, 0, words, true, true}, {1, words, words, words, true, true}}, lower};
  const Outcome plain = run(kernels_of<TileKernels>(Isa::serial), p);
  const Outcome neon = run(kernels_of<TileKernels>(Isa::neon), p);
  bool counted = true;
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < (lower ? i + 1 : cols); ++j) {
      counted &= neon.counts[static_cast<size_t>(i * kTileStride + j)] == both_on(p, i, j);
    }
  }
  expect(counted, "counts", rows, cols, words);
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < (lower ? i + 1 : cols); ++j) {
      const auto at = static_cast<size_t>(i * kTileStride + j);
      if (std::memcmp(&plain.f32[at], &neon.f32[at], 4) != 0 || std::memcmp(&plain.f64[at], &neon.f64[at], 8) != 0) {
        expect(false, "products", rows, cols, words);
        return;
      }
    }
  }
  expect(same(plain.on, neon.on), "gates on", rows, cols, words);
  if (!lower) {  // If lower, the kernels may leave anything above the diagonal.
    expect(same(plain.stored, neon.stored), "stored tile", rows, cols, words);
    expect(same(plain.turned, neon.turned), "transposed tile", rows, cols, words);
    expect(same(plain.sums, neon.sums), "sums", rows, cols, words);
    expect(same(plain.above, neon.above), "entries above limits", rows, cols, words);
  }
}

}  // namespace
}  // namespace gatedops::cpu

int main() {
  using namespace gatedops::cpu;
  if (&kernels_of<TileKernels>(Isa::neon) == &kernels_of<TileKernels>(Isa::serial)) {
    std::puts("wrong: no kernels for NEON are registered");
    return 1;
  }
  int compared = 0;
  for (const int rows : {1, 3, 4, 17, 64, 255}) {
    for (const int cols : {1, 5, 16, 33, 256}) {
      for (const int words : {1, 8, 31, 32, 63, 100, 256}) {
        compare(rows, cols, words, false);
        ++compared;
      }
    }
  }
  for (const int rows : {1, 4, 15, 64, 130, 256}) {
    compare(rows, rows, 40, true);
    ++compared;
  }
  std::printf("%s: %d problems compared, %d wrong\n", name(active_isa()), compared, failures);
  return failures == 0 ? 0 : 1;
}
