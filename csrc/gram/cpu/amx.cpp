// Tile kernels for AMX. Gates become bytes, and TDPBUUD counts 16 x 16 pairs x 64 gates in one instruction.
//
//   instruction       Sapphire Rapids: latency   cycles from one to the next
//   TDPBUUD           52                         16
//   TILELOADD(T1)     not known here             8, from the L1 cache
//   16,384 bit-pairs                             16 cycles
//   bound                                        1,024 bit-pairs a cycle
//
// Four accumulators hide the latency of the products. bit_pairs_per_second (kernels.h) measures the bound of the CPU at
// hand. The bound is three times that of VPOPCNTD; reading the operands is what keeps the kernel below it.
//
// A register tile is 32 x 32 pairs: four accumulators, and two tiles of x and two of y for every 64 gates. The products
// take 64 cycles while 4 KiB are read. The 32 columns lie in the L1 cache, 32 KiB for 1,024 gates. TILELOADDT1 loads
// the rows from the L2 cache with the hint that they are not needed again soon; without this hint they evict the
// columns. From the second layer on, a register tile also reads and writes 4 KiB of product, or of counts if a layer
// has more than 1,024 gates, through the same path. The kernel does that between the products of the next register
// tile, when the vector units are idle. Expanding the rows to bytes costs a fifth of a tile's time. So the kernel keeps
// the bytes of the first 4,096 gates for the next tile, which mostly has the same rows. The section one-core of
// benchmarks/gram.py shows the distance from the bound.
//
// Bits become bytes like this: byte i of lane q of 64 gates is bit q / 2 + 8 i of word q % 2, which takes one shift and
// one AND for 64 gates. Both operands have their gates in this order, and counts do not depend on the order.
#include "core/cpu/isa.h"

#if defined(GATEDOPS_AMX)

#include <immintrin.h>

#include <cstring>

#include "kernels.h"

#include "core/cpu/target_avx512.h"

#include "tile-inl.h"

#include "avx512-inl.h"

#include "amx-inl.h"

namespace gatedops::cpu {
namespace {

// A register tile has this many rows and columns.
constexpr int kEdge = 2 * kGroupRows;
// A panel has at most this many words: 32 columns of them are 32 KiB of bytes.
constexpr int kWords = 32;
// A panel has at most this many steps of 64 gates, since zeros fill up the step of a layer's odd word.
constexpr int kSteps = kWords;
// The rows of this many panels are kept as bytes, 256 KiB each.
constexpr int kHeld = 4;

// The rows of a tile as bytes: [group of 16 rows][step].
using RowBytes = uint8_t[kTile / kGroupRows * kSteps][kRegisterBytes];

struct Work {
  // Says what each of `rows` holds: rows[0..2] cache panels 0 to 2 of a problem, and all later panels share rows[3].
  // A worker's next tile often has the same rows.
  struct Held {
    const uint32_t* words;
    const LayerPiece* pieces;
    int64_t height;
  } held[kHeld];
  alignas(64) int32_t sums[kEdge][kEdge];
  alignas(64) uint8_t columns[2][kSteps][kRegisterBytes];
  alignas(64) RowBytes rows[kHeld];
};
static_assert(sizeof(Work::held) <= kZeroed);

int steps_of(const LayerPiece& piece) {
  return (piece.words + 1) / 2;
}

int steps_of(PieceRange pieces) {
  int total = 0;
  for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
    total += steps_of(*p);
  }
  return total;
}

__m512i bytes_of(__m512i words, __m512i shift) {
  return _mm512_and_si512(_mm512_srlv_epi32(words, shift), _mm512_set1_epi32(0x01010101));
}

// Expands 64 gates of 16 rows. Unless `pair`, the second word is zeros.
void expand_rows_step(const uint32_t* const (&rows)[kGroupRows], int64_t word, bool pair, uint8_t* to) {
  const __m512i shift = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  for (int r = 0; r < kGroupRows; ++r) {
    int64_t words = 0;
    if (pair) {
      std::memcpy(&words, rows[r] + word, sizeof words);
    } else {
      words = rows[r][word];
    }
    _mm512_store_si512(to + r * 64, bytes_of(_mm512_set1_epi64(words), shift));
  }
}

// Returns the rows of a panel as bytes. Makes them unless they are kept from the tile before. The last row also stands
// for the rows past it.
const uint8_t* expand_rows(const RowBlock& x, PieceRange pieces, Work& work) {
  const int slot = pieces.panel < kHeld ? pieces.panel : kHeld - 1;
  Work::Held& held = work.held[slot];
  uint8_t* to = work.rows[slot][0];
  if (held.words == x.words && held.pieces == pieces.begin && held.height == x.rows) {
    return to;
  }
  held = {x.words, pieces.begin, x.rows};
  const uint8_t* first = to;
  for (int i = 0; i < x.rows; i += kGroupRows) {
    const uint32_t* rows[kGroupRows];
    for (int r = 0; r < kGroupRows; ++r) {
      rows[r] = x.words + (i + r < x.rows ? i + r : x.rows - 1) * x.stride;
    }
    for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
      for (int k = 0; k < p->words; k += 2, to += kRegisterBytes) {
        expand_rows_step(rows, p->first + k, k + 1 < p->words, to);
      }
    }
  }
  return first;
}

// Expands 64 gates of 16 columns of a panel whose words are `strip` columns wide.
void expand_columns_step(const uint32_t* panel, int strip, bool pair, uint8_t* to) {
  const __m512i first = _mm512_loadu_si512(panel);
  const __m512i second = pair ? _mm512_loadu_si512(panel + strip) : _mm512_setzero_si512();
  for (int bit = 0; bit < 8; ++bit, to += 128) {
    const __m512i shift = _mm512_set1_epi32(bit);
    _mm512_store_si512(to, bytes_of(first, shift));
    _mm512_store_si512(to + 64, bytes_of(second, shift));
  }
}

void expand_columns(const uint32_t* panel, int strip, PieceRange pieces, Work& work) {
  for (int half = 0; half < 2; ++half) {
    const uint32_t* from = panel + half * kGroupRows;
    uint8_t* to = work.columns[half][0];
    for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
      for (int k = 0; k < p->words; k += 2, to += kRegisterBytes) {
        expand_columns_step(from + k * strip, strip, k + 1 < p->words, to);
      }
      from += p->words * strip;
    }
  }
}

// Adds the counts of some steps to the sums of 32 x 32 pairs. The tiles of a group of rows or columns lie side by side.
// Calls between() after the products of each step.
template <class Between>
GATEDOPS_INLINE void add_counts(
    const uint8_t* x0, const uint8_t* x1, const uint8_t* y0, const uint8_t* y1, int steps, const Between& between) {
  for (int64_t at = 0; at < int64_t{steps} * kRegisterBytes; at += kRegisterBytes) {
    stream_tile<4>(x0 + at, 64);
    load_tile<6>(y0 + at, 64);
    multiply_unsigned<0, 4, 6>();
    load_tile<7>(y1 + at, 64);
    multiply_unsigned<1, 4, 7>();
    stream_tile<5>(x1 + at, 64);
    multiply_unsigned<2, 5, 6>();
    multiply_unsigned<3, 5, 7>();
    between();
  }
}

using Vectors = Tile<Avx512Isa>;

// Says where the counts of a tile go: into the product if a piece closes its layer, else into the counts so far.
template <class T>
struct TileResult {
  // There is one factor for each layer.
  const T* scale;
  // Both belong to the whole tile. The product is null if only counts are wanted.
  int32_t* counts;
  T* product;

  static TileResult only_counts(int32_t* counts) {
    return {nullptr, counts, nullptr};
  }
};

// Finishes the sums of a register tile row by row, between the products of the next one, which leave the vector units
// idle.
template <class T>
class Unfinished {
 public:
  // `sums` are those of a piece of 32 x 32 pairs that begin `offset` elements into the tile.
  Unfinished(const TileResult<T>& to, const LayerPiece& piece, int64_t offset, const int32_t (*sums)[kEdge])
      : sums_(sums),
        counts_(to.counts),
        product_(piece.closes ? to.product : nullptr),
        at_(offset),
        scale_(product_ != nullptr ? to.scale[piece.layer] : T(1)),
        opens_(piece.opens),
        first_(piece.layer == 0) {}
  // Has nothing left to finish.
  Unfinished() : row_(kEdge) {}

  GATEDOPS_INLINE void finish(int rows) {
    for (const int end = row_ + rows < kEdge ? row_ + rows : kEdge; row_ < end; ++row_, at_ += kTileStride) {
      finish_half(0);
      finish_half(kGroupRows);
    }
  }

 private:
  GATEDOPS_INLINE void finish_half(int column) {
    __m512i sum = _mm512_load_si512(sums_[row_] + column);
    if (!opens_) {
      sum = _mm512_add_epi32(sum, _mm512_loadu_si512(counts_ + at_ + column));
    }
    if (product_ == nullptr) {
      _mm512_storeu_si512(counts_ + at_ + column, sum);
    } else if (first_) {
      Avx512Isa::factor(product_ + at_ + column, sum, scale_);
    } else {
      Avx512Isa::multiply(product_ + at_ + column, sum, scale_);
    }
  }

  const int32_t (*sums_)[kEdge] = nullptr;
  int32_t* counts_ = nullptr;
  T* product_ = nullptr;
  int64_t at_ = 0;  // the next row to finish begins this many elements into the tile
  T scale_ = 1;
  bool opens_ = false, first_ = false;
  int row_ = 0;
};

template <class T>
void sweep(
    const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const TileResult<T>& to,
    void* workspace) {
  Work& work = *static_cast<Work*>(workspace);
  const TileRegisters registers;
  const uint8_t* const rows = expand_rows(x, pieces, work);
  const int panel_words = pieces.words();
  const int64_t group = int64_t{steps_of(pieces)} * kRegisterBytes;  // 16 rows take this many bytes
  Unfinished<T> last;
  for (int j = 0; j < cols; j += kEdge) {
    const int in_strip = j % Vectors::kStrip;
    expand_columns(panel + int64_t{j - in_strip} * panel_words + in_strip, Vectors::kStrip, pieces, work);
    for (int i = lower ? j : 0; i < x.rows; i += kEdge) {
      const uint8_t* x0 = rows + i / kGroupRows * group;
      // If no second 16 rows follow, the same are counted twice: the second counts go to rows that are not read.
      const uint8_t* x1 = i + kGroupRows < x.rows ? x0 + group : x0;
      const uint8_t *y0 = work.columns[0][0], *y1 = work.columns[1][0];
      for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
        const int steps = steps_of(*p), rows_a_step = (kEdge + steps - 1) / steps;
        clear_sums();
        add_counts(x0, x1, y0, y1, steps, [&] { last.finish(rows_a_step); });
        store_sums(work.sums[0], kEdge);
        last = Unfinished<T>(to, *p, i * kTileStride + j, work.sums);
        for (const uint8_t** at : {&x0, &x1, &y0, &y1}) {
          *at += steps * kRegisterBytes;
        }
      }
    }
  }
  last.finish(kEdge);
}

template <class T>
void product(
    const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const T* scale, int32_t* counts,
    T* product, void* work) {
  sweep<T>(x, panel, cols, pieces, lower, {scale, counts, product}, work);
}

void count(
    const RowBlock& x, const uint32_t* panel, int cols, PieceRange piece, bool lower, int32_t* counts, void* work) {
  sweep<float>(x, panel, cols, piece, lower, TileResult<float>::only_counts(counts), work);
}

// Runs the products of add_counts without its reads of tiles.
void multiply_in_registers(int64_t rounds) {
  const TileRegisters registers;
  alignas(64) uint8_t bits[2][kRegisterBytes];
  for (int i = 0; i < kRegisterBytes; ++i) {
    bits[0][i] = i % 3 == 0;
    bits[1][i] = i % 5 < 2;
  }
  load_tile<4>(bits[0], 64);
  load_tile<5>(bits[1], 64);
  load_tile<6>(bits[1], 64);
  load_tile<7>(bits[0], 64);
  clear_sums();
  for (int64_t round = 0; round < rounds; ++round) {
    multiply_unsigned<0, 4, 6>();
    multiply_unsigned<1, 4, 7>();
    multiply_unsigned<2, 5, 6>();
    multiply_unsigned<3, 5, 7>();
  }
}

constexpr TileKernels amx_kernels() {
  TileKernels kernels = Vectors::kernels(nullptr);
  kernels.piece_words = kWords;
  kernels.panel_words = kWords;
  kernels.by_block = false;
  kernels.workspace = sizeof(Work);
  kernels.count = count;
  kernels.product_f32 = product<float>;
  kernels.product_f64 = product<double>;
  kernels.turn_registers = turn_registers_on_amx;
  kernels.multiply_bytes = multiply_bytes_on_amx;
  kernels.multiply_digits = multiply_digits_on_amx;
  return kernels;
}

constexpr TileKernels kTileAmx = amx_kernels();
constexpr RateLoop kRateAmx{int64_t{kEdge} * kEdge * 64, multiply_in_registers};

}  // namespace
}  // namespace gatedops::cpu

#include "core/cpu/target_end.h"

GATEDOPS_KERNELS_OF(amx, kTileAmx)
GATEDOPS_KERNELS_OF(amx, kRateAmx)

#endif
