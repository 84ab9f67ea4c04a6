// Tile kernels written once over an instruction set's traits I. Each gram_<isa>.cpp includes this
// after its target pragma, so that everything here is compiled for that instruction set and, being
// in an anonymous namespace, never merged with another file's copy.
//
// I::Vec holds I::kLanes 32-bit lanes, one column of the tile per lane. A register tile is I::kRows
// rows by I::kVecs vectors. A panel keeps words as I::Column, of I::kPlanes vectors, a row's word is broadcast as
// I::Row. I::load_first reads the first words of a vector, with zeros behind them. I::step adds popcount(a AND b) to
// an accumulator that stays valid for I::kMaxSteps steps; I::fold turns it into int32 counts. I::factor writes
// counts * scale, I::multiply multiplies it in.
#include "block-inl.h"

namespace gatedops::cpu {
namespace {

// What an instruction set I adds to its traits where panels keep words as they are: its Row and Column are Vec.
template <class I>
struct WholeWords {
  static constexpr int kPlanes = 1;
  template <class V>
  static V row_of(V v) {
    return v;
  }
  template <class V>
  static V column_of(V v) {
    return v;
  }
  static auto load_column(const uint32_t* p) {
    return I::load(p);
  }
  template <class V>
  static void store_column(uint32_t* p, V v) {
    I::store(p, v);
  }
};

template <class I>
struct Tile {
  using Blocks = Block<I>;
  using Vec = typename I::Vec;
  using Row = typename I::Row;
  using Column = typename I::Column;
  static constexpr int kLanes = I::kLanes;
  static constexpr int kRows = I::kRows;
  static constexpr int kVecs = I::kVecs;
  static constexpr int kStrip = kVecs * kLanes;
  static constexpr int kStep = kStrip * I::kPlanes;  // words between a strip's words in a panel

  static void pack_panel(const RowBlock& y, PieceRange pieces, uint32_t* panel) {
    const int total = pieces.words();
    for (int j = 0; j < y.rows; j += kStrip, panel += total * kStep) {
      for (int c = 0; c < kStrip; c += kLanes) {
        prefetch_columns(y, j + c + kLanes, pieces);
        uint32_t* to = panel + c * I::kPlanes;
        for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
          pack_columns(y, j + c, p->y_first, p->words, to);
          to += p->words * kStep;
        }
      }
    }
  }

  // Reading kLanes rows side by side is too much for the hardware's own prefetcher.
  static void prefetch_columns(const RowBlock& y, int column, PieceRange pieces) {
    constexpr int kLine = 64 / sizeof(uint32_t);
    for (int lane = 0; lane < kLanes && column + lane < y.rows; ++lane) {
      for (const LayerPiece* p = pieces.begin; p != pieces.end; ++p) {
        for (int k = 0; k < p->words; k += kLine) {
          __builtin_prefetch(y.words + (column + lane) * y.stride + p->y_first + k);
        }
      }
    }
  }

  // Words of kLanes columns (zeros past the last), kStep apart.
  static void pack_columns(const RowBlock& y, int column, int64_t first, int words, uint32_t* to) {
    const uint32_t* from = y.words + column * y.stride + first;
    for (int k = 0; k < words; k += kLanes) {
      const int here = words - k < kLanes ? words - k : kLanes;
      Vec block[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        block[lane] = column + lane < y.rows ? I::load_first(from + lane * y.stride + k, here) : I::zero();
      }
      I::transpose(block);
      for (int w = 0; w < here; ++w) {
        I::store_column(to + (k + w) * kStep, block[w]);
      }
    }
  }

  // The register tile is a plain array that the compiler must keep in registers: every loop over it
  // has constant bounds and everything around it is inlined.
  using Counts = Vec[kRows][kVecs];

  template <class F>
  GATEDOPS_INLINE static void each(const F& f) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kVecs; ++c) {
        f(r, c, r * kTileStride + c * kLanes);
      }
    }
  }

  GATEDOPS_INLINE static void accumulate(
      const uint32_t* const (&rows)[kRows], const uint32_t* panel, int begin, int end, Counts& acc) {
    for (int k = begin; k < end; ++k) {
      Column b[kVecs];
      for (int c = 0; c < kVecs; ++c) {
        b[c] = I::load_column(panel + k * kStep + c * kLanes * I::kPlanes);
      }
      for (int r = 0; r < kRows; ++r) {
        const Row a = I::broadcast(rows[r] + k);
        for (int c = 0; c < kVecs; ++c) {
          acc[r][c] = I::step(acc[r][c], a, b[c]);
        }
      }
    }
  }

  // total += popcount(x AND y) over the words of a piece.
  GATEDOPS_INLINE static void count_piece(
      const uint32_t* const (&rows)[kRows], const uint32_t* panel, int words, Counts& total) {
    if constexpr (I::kMaxSteps >= kPanelWords) {  // the accumulator is the count itself
      accumulate(rows, panel, 0, words, total);
    } else {
      for (int k = 0; k < words; k += I::kMaxSteps) {
        Counts acc;
        each([&](int r, int c, int) { acc[r][c] = I::zero(); });
        accumulate(rows, panel, k, k + I::kMaxSteps < words ? k + I::kMaxSteps : words, acc);
        each([&](int r, int c, int) { total[r][c] = I::add(total[r][c], I::fold(acc[r][c])); });
      }
    }
  }

  // Runs every piece over every register tile; done(piece, offset in the tile, counts) gets the
  // counts of a piece that closes its layer, the count buffer those of one that does not.
  template <class Done>
  static void sweep(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, int32_t* counts,
      const Done& done) {
    const int panel_words = pieces.words();
    for (int j = 0; j < cols; j += kStrip, panel += panel_words * kStep) {
      for (int i = lower ? j / kRows * kRows : 0; i < x.rows; i += kRows) {
        const uint32_t* p = panel;
        for (const LayerPiece* piece = pieces.begin; piece != pieces.end; ++piece) {
          const uint32_t* rows[kRows];
          for (int r = 0; r < kRows; ++r) {
            rows[r] = x.words + (i + r < x.rows ? i + r : x.rows - 1) * x.stride + piece->first;
          }
          run_piece(rows, p, *piece, i * kTileStride + j, counts, done);
          p += piece->words * kStep;
        }
      }
    }
  }

  template <class Done>
  GATEDOPS_INLINE static void run_piece(
      const uint32_t* const (&rows)[kRows], const uint32_t* panel, const LayerPiece& piece, int offset, int32_t* counts,
      const Done& done) {
    Counts total;
    if (piece.opens) {
      each([&](int r, int c, int) { total[r][c] = I::zero(); });
    } else {
      each([&](int r, int c, int at) { total[r][c] = I::load(counts + offset + at); });
    }
    count_piece(rows, panel, piece.words, total);
    if (piece.closes) {
      done(piece, offset, total);
    } else {
      each([&](int r, int c, int at) { I::store(counts + offset + at, total[r][c]); });
    }
  }

  static void count(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange piece, bool lower, int32_t* counts, void*) {
    sweep(x, panel, cols, piece, lower, counts, [counts](const LayerPiece&, int offset, const Counts& total) {
      each([&](int r, int c, int at) { I::store(counts + offset + at, total[r][c]); });
    });
  }

  // The panel of rows of bytes, each byte less 128 in two's complement; aligned to 64 bytes.
  static uint32_t* pack_bytes(const RowBlock& y, const LayerPiece& piece, uint32_t* panel) {
    constexpr uintptr_t kLine = 64;
    auto* aligned = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(panel) + kLine - 1) / kLine * kLine);
    pack_panel(y, {&piece, &piece + 1, 0}, aligned);
    const int strips = (y.rows + kStrip - 1) / kStrip;
    for (int k = 0; k < strips * kStrip * piece.words; ++k) {
      aligned[k] ^= 0x80808080u;
    }
    return aligned;
  }

  // The same loop with I::step multiplying bytes instead of counting bits.
  static void dot_bytes(const RowBlock& x, const RowBlock& y, int words, uint32_t* panel, int32_t* out) {
    const LayerPiece piece{0, 0, 0, words, true, true};
    count(x, pack_bytes(y, piece, panel), y.rows, {&piece, &piece + 1, 0}, false, out, nullptr);
  }

  template <class T>
  static void product(
      const RowBlock& x, const uint32_t* panel, int cols, PieceRange pieces, bool lower, const T* scale,
      int32_t* counts, T* product, void*) {
    sweep(x, panel, cols, pieces, lower, counts, [=](const LayerPiece& piece, int offset, const Counts& total) {
      const T s = scale[piece.layer];
      if (piece.layer == 0) {
        each([&](int r, int c, int at) { I::factor(product + offset + at, total[r][c], s); });
      } else {
        each([&](int r, int c, int at) { I::multiply(product + offset + at, total[r][c], s); });
      }
    });
  }

  static void row_counts(const uint32_t* row, const int64_t* first, const int64_t* count, int layers, int32_t* out) {
    for (int l = 0; l < layers; ++l) {
      const uint32_t* words = row + first[l];
      int32_t total = 0;
      for (int64_t k = 0; k < count[l]; k += kLanes) {
        alignas(64) uint32_t lane[kLanes] = {};
        const int64_t here = count[l] - k < kLanes ? count[l] - k : kLanes;
        std::memcpy(lane, words + k, here * sizeof(uint32_t));
        const Vec v = I::load(lane);
        I::store(lane, I::fold(I::step(I::zero(), I::row_of(v), I::column_of(v))));
        for (int c = 0; c < kLanes; ++c) {
          total += static_cast<int32_t>(lane[c]);
        }
      }
      out[l] = total;
    }
  }

  static constexpr TileKernels kernels(decltype(TileKernels::dot_bytes) dot_bytes) {
    return {
        kStrip,
        I::kPlanes,
        kPanelWords,
        kPanelWords,
        true,
        0,
        pack_panel,
        count,
        product<float>,
        product<double>,
        Blocks::template store<float>,
        Blocks::template store<double>,
        Blocks::template store_transposed<float>,
        Blocks::template store_transposed<double>,
        Blocks::transpose,
        Blocks::contract,
        Blocks::template find_above<float>,
        Blocks::template find_above<double>,
        dot_bytes,
        row_counts};
  }
};

}  // namespace
}  // namespace gatedops::cpu
