// What is done with finished blocks of a tile, written once over an instruction set's traits I, for tile-inl.h:
// they are stored, turned, multiplied with vectors and searched. I::transpose turns a square of I::kLanes vectors,
// I::above compares a vector with limits, or one: a bit where it is not less. I::Wide holds doubles, read from doubles
// or floats; I::add_exact_product adds products that are exact in doubles: it may or may not round them first.

namespace gatedops::cpu {
namespace {

template <class I>
struct Block {
  using Vec = typename I::Vec;
  static constexpr int kLanes = I::kLanes;

  // One row of 32-bit words, past the caches where it covers whole aligned vectors.
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

  // Reads whole register squares, the tile is padded to them.
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

  // Rows of the output are as long as the tile is high: the fewer their ends, the fewer lines are written in parts.
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
  static constexpr int kFewAtOnce = sizeof(Vec) == 64 ? 10 : 5;  // columns of v: as many sums as registers hold

  // The sums of kSumVecs registers of a block's columns and of C columns of v. In doubles the products are exact and
  // the sums as good as: in floats, one term after another, they would fall behind torch's, which has many side by
  // side.
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

  // The first min(columns, C) columns of v.
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

  // Bits of the columns, at most kBlock, whose value is not less than limits[j], or than limits[0] for all of them.
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
    // A copy, as whole vectors are read and there may be no limits past the last column.
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

}  // namespace
}  // namespace gatedops::cpu
