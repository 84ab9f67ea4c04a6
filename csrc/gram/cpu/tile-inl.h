// Tile kernels that are written once over an instruction set's traits I. Each <isa>.cpp includes this file after its
// target pragma, so everything here is compiled for that instruction set. The anonymous namespace keeps the linker from
// merging it with another file's copy.
//
// I::Vec holds I::kLanes 32-bit lanes, one column of the tile per lane. A register tile is I::kRows rows by I::kVecs
// vectors. A panel keeps a word of each lane as I::Column, which is I::kPlanes vectors. A row's word is broadcast as
// I::Row. I::load_first reads the first words of a vector and puts zeros behind them. I::step adds popcount(a AND b) to
// an accumulator that stays valid for I::kMaxSteps steps; I::fold turns it into int32 counts. I::factor writes
// counts * scale, I::multiply multiplies the product by it.
//
// Block comes first: it stores, transposes, multiplies with vectors and searches finished blocks. I::transpose
// transposes a square of I::kLanes vectors. I::above compares a vector with a vector of limits or with one limit and
// sets a bit if the value is not less. I::Wide holds doubles, read from doubles or floats. I::add_exact_product adds
// products that are exact in double, so a fused multiply-add and two instructions give the same bits.

namespace gatedops::cpu {
namespace {

template <class I>
struct Block {
  using Vec = typename I::Vec;
  static constexpr int kLanes = I::kLanes;

  // Stores one row of 32-bit words. `stream` writes its whole aligned vectors past the caches.
  static void store_row(const uint32_t* from, int words, uint32_t* to, bool stream) {
    constexpr uintptr_t kBytes = kLanes * sizeof(uint32_t);
    int k = 0;
    if (stream) {
      for (; k < words && reinterpret_cast<uintptr_t>(to + k) % kBytes != 0; ++k) {
        to[k] = from[k];
      }
      for (; k + kLanes <= words; k += kLanes) {
        I::stream(to + k, I::load(from + k));
      }
    } else {
      for (; k + kLanes <= words; k += kLanes) {
        I::store(to + k, I::load(from + k));
      }
    }
    for (; k < words; ++k) {
      to[k] = from[k];
    }
  }

  template <class T>
  static void store(const T* tile, int rows, int cols, T* out, int64_t stride, bool stream) {
    constexpr int kWords = sizeof(T) / sizeof(uint32_t);
    for (int i = 0; i < rows; ++i) {
      store_row(
          reinterpret_cast<const uint32_t*>(tile + i * kTileStride), cols * kWords,
          reinterpret_cast<uint32_t*>(out + i * stride), stream);
    }
  }

  // Reads whole register squares: the tile is padded to them.
  static void transpose(const float* block, int rows, int cols, float* turned) {
    for (int i = 0; i < rows; i += kLanes) {
      for (int j = 0; j < cols; j += kLanes) {
        Vec square[kLanes];
        for (int r = 0; r < kLanes; ++r) {
          square[r] = I::load(reinterpret_cast<const uint32_t*>(block + (i + r) * kTileStride + j));
        }
        I::transpose(square);
        for (int r = 0; r < kLanes; ++r) {
          I::store(reinterpret_cast<uint32_t*>(turned + (j + r) * kTileStride + i), square[r]);
        }
      }
    }
  }

  static void transpose(const double* block, int rows, int cols, double* turned) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j) {
        turned[j * kTileStride + i] = block[i * kTileStride + j];
      }
    }
  }

  // Transposes the whole height of a tile before it stores a row of the output. Longer rows have fewer ends, and at an
  // end a cache line is written in parts.
  template <class T>
  static void store_transposed(const T* tile, int rows, int cols, T* out, int64_t stride, bool stream) {
    alignas(64) T turned[kBlock * kTileStride];
    for (int j = 0; j < cols; j += kBlock) {
      const int width = cols - j < kBlock ? cols - j : kBlock;
      for (int i = 0; i < rows; i += kBlock) {
        const int height = rows - i < kBlock ? rows - i : kBlock;
        transpose(tile + i * kTileStride + j, height, width, turned + i);
      }
      store(turned, width, rows, out + j * stride, stride, stream);
    }
  }

  using Wide = typename I::Wide;
  static constexpr int kWide = sizeof(Wide) / sizeof(double);

  static constexpr int kSumVecs = 2;
  // This many columns of v are summed at once: their sums fill the registers.
  static constexpr int kFewAtOnce = sizeof(Vec) == 64 ? 10 : 5;

  // Adds to the sums of kSumVecs registers of a block's columns and of C columns of v. Products of floats are exact in
  // double, so only sums round.
  //
  // One row of the block costs kSumVecs conversions to double, and for each of the C columns one broadcast from memory
  // and kSumVecs products and sums. The products and sums bound the loop:
  //
  //   instruction            CPU                        latency  throughput        products a cycle at most
  //   VFMADD231PD zmm        Ice Lake server            4        2 a cycle (p05)   16
  //                          Zen 4                      4        1 a cycle (FP01)  8
  //                          Zen 5                      4        2 a cycle (FP01)  16
  //   VMULPD + VADDPD ymm    Ice Lake                   4 + 4    2 a cycle (p01)   4
  //                          Zen 4                      3 + 3    2 of each         8
  //
  // The figures of MULPD + ADDPD on SSE2 and of FMUL + FADD on Arm are not known here. Only the additions of a sum
  // depend on each other, and 2 C sums hide their latency.
  template <int C>
  GATEDOPS_INLINE static void sum_columns(
      const float* block, int rows, const double* v, int64_t v_stride, double* sums) {
    Wide acc[C][kSumVecs];
    for (int c = 0; c < C; ++c) {
      for (int s = 0; s < kSumVecs; ++s) {
        acc[c][s] = I::load_wide(sums + c * kTile + s * kWide);
      }
    }
    for (int i = 0; i < rows; ++i) {
      Wide row[kSumVecs];
      for (int s = 0; s < kSumVecs; ++s) {
        row[s] = I::load_wide(block + i * kTileStride + s * kWide);
      }
      for (int c = 0; c < C; ++c) {
        const Wide factor = I::broadcast_wide(v + i * v_stride + c);
        for (int s = 0; s < kSumVecs; ++s) {
          acc[c][s] = I::add_exact_product(acc[c][s], row[s], factor);
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      for (int s = 0; s < kSumVecs; ++s) {
        I::store_wide(sums + c * kTile + s * kWide, acc[c][s]);
      }
    }
  }

  // Adds the sums of the first min(columns, C) columns of v.
  template <int C>
  static void sum_first(
      const float* block, int rows, int cols, const double* v, int64_t v_stride, int columns, double* sums) {
    if constexpr (C > 1) {
      if (columns < C) {
        return sum_first<C - 1>(block, rows, cols, v, v_stride, columns, sums);
      }
    }
    for (int j = 0; j < cols; j += kSumVecs * kWide) {
      sum_columns<C>(block + j, rows, v, v_stride, sums + j);
    }
  }

  static void contract(
      const float* block, int rows, int cols, const double* v, int64_t v_stride, int columns, double* sums) {
    static_assert(kBlock % (kSumVecs * kWide) == 0);
    for (int c = 0; c < columns; c += kFewAtOnce) {
      sum_first<kFewAtOnce>(block, rows, cols, v + c, v_stride, columns - c, sums + c * kTile);
    }
  }

  // Returns a bit for each of at most kBlock columns, which says whether the value is not less than its limit. The
  // limit is limits[j] if kEach, else limits[0].
  template <bool kEach, class T>
  GATEDOPS_INLINE static uint64_t above(const T* row, int cols, const T* limits) {
    constexpr int kCount = sizeof(Vec) / sizeof(T);
    uint64_t bits = 0;
    for (int j = 0; j < cols; j += kCount) {
      bits |= static_cast<uint64_t>(kEach ? I::above(row + j, limits + j) : I::above(row + j, *limits)) << j;
    }
    return bits & (~uint64_t{0} >> (kBlock - cols));
  }

  template <class T>
  static void find_above(
      const T* block, int rows, int cols, const T* row_limits, const T* column_limits, uint64_t* by_row,
      uint64_t* by_column) {
    static_assert(kBlock == 64);
    // The limits are copied, because whole vectors are read and memory need not go on behind the last column's limit.
    alignas(64) T limits[kBlock] = {};
    if (column_limits != nullptr) {
      std::memcpy(limits, column_limits, static_cast<size_t>(cols) * sizeof(T));
    }
    for (int i = 0; i < rows; ++i) {
      const T* row = block + i * kTileStride;
      by_row[i] = above<false>(row, cols, row_limits + i);
      if (column_limits != nullptr) {
        by_column[i] = above<true>(row, cols, limits);
      }
    }
  }
};

// Completes the traits of an instruction set I whose panels keep words as they are: its Row and Column are Vec.
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
  // One word of each column of a strip takes this many words in a panel.
  static constexpr int kStep = kStrip * I::kPlanes;

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

  // Prefetches the next kLanes rows: the hardware's own prefetcher does not follow that many rows side by side.
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

  // Writes the words of kLanes columns kStep apart, and zeros for columns past the last.
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

  // The register tile is a plain array that the compiler must keep in registers: every loop over it has constant
  // bounds, and everything around it is inlined.
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

  // Runs every piece over every register tile. done(piece, offset in the tile, counts) gets the counts of a piece that
  // closes its layer; the count buffer gets the counts of any other piece.
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

  // Packs rows of bytes into a panel that is aligned to 64 bytes. Each byte becomes itself less 128, in two's
  // complement.
  static uint32_t* pack_bytes(const RowBlock& y, const LayerPiece& piece, uint32_t* panel) {
    constexpr uintptr_t kLine = 64;
    auto* aligned = reinterpret_cast<uint32_t*>((reinterpret_cast<uintptr_t>(panel) + kLine - 1) / kLine * kLine);
    pack_panel(y, PieceRange::only(&piece), aligned);
    const int strips = (y.rows + kStrip - 1) / kStrip;
    for (int k = 0; k < strips * kStrip * piece.words; ++k) {
      aligned[k] ^= 0x80808080u;
    }
    return aligned;
  }

  // Runs the loop of the counts for an I whose step multiplies bytes instead of counting bits.
  static void dot_bytes(const RowBlock& x, const RowBlock& y, int words, uint32_t* panel, int32_t* out) {
    const LayerPiece piece = LayerPiece::whole(words);
    count(x, pack_bytes(y, piece, panel), y.rows, PieceRange::only(&piece), false, out, nullptr);
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

  template <class T>
  static void weigh(const int32_t* counts, SlopedLayer<T> layer, int rows, int cols, bool lower, T* product) {
    for (int i = 0; i < rows; ++i, counts += kTileStride, product += kTileStride) {
      const int32_t on = layer.x_on[i];
      const int end = lower ? i + 1 : cols;
      for (int j = 0; j < end; ++j) {
        const T factor = layer.factor(on + layer.y_on[j], counts[j]);
        product[j] = layer.first ? factor : product[j] * factor;
      }
    }
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
    TileKernels k{};
    k.strip = kStrip;
    k.planes = I::kPlanes;
    k.piece_words = kPanelWords;
    k.panel_words = kPanelWords;
    k.by_block = true;
    k.workspace = 0;
    k.pack_panel = pack_panel;
    k.count = count;
    k.product_f32 = product<float>;
    k.product_f64 = product<double>;
    k.weigh_f32 = weigh<float>;
    k.weigh_f64 = weigh<double>;
    k.store_f32 = Blocks::template store<float>;
    k.store_f64 = Blocks::template store<double>;
    k.store_transposed_f32 = Blocks::template store_transposed<float>;
    k.store_transposed_f64 = Blocks::template store_transposed<double>;
    k.transpose = Blocks::transpose;
    k.contract = Blocks::contract;
    k.find_above_f32 = Blocks::template find_above<float>;
    k.find_above_f64 = Blocks::template find_above<double>;
    k.dot_bytes = dot_bytes;
    k.row_counts = row_counts;
    return k;
  }
};

}  // namespace
}  // namespace gatedops::cpu
