// What is done with finished blocks of a tile, written once over an instruction set's traits I, for gram_tile_body.h:
// they are stored, turned, multiplied with vectors and searched. I::transpose turns a square of I::kLanes vectors,
// I::above compares a vector with limits, or one: a bit where it is not less.

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

  // Registers of numbers of type T, as the compiler makes them.
  template <class T>
  struct Numbers {
    typedef T Vec __attribute__((vector_size(sizeof(typename I::Vec)), aligned(alignof(T)), may_alias));
    static constexpr int kLanes = sizeof(Vec) / sizeof(T);

    static const Vec& at(const T* p) {
      return *reinterpret_cast<const Vec*>(p);
    }
    static Vec& at(T* p) {
      return *reinterpret_cast<Vec*>(p);
    }
  };

  static constexpr int kFewAtOnce = 5;  // columns of v
  static constexpr int kSumVecs = sizeof(typename I::Vec) == 64 ? 4 : 2;
  // Rows summed one after another before they join the sums: rounding grows with the longest chain, and chains of 16
  // for a block and of 16 for a tile keep it at that of torch's sums, which have as many side by side.
  static constexpr int kChain = 16;

  // The sums of kSumVecs registers of a block's columns and of C columns of v, for kChain rows at most.
  template <int C, class T>
  GATEDOPS_INLINE static void sum_chain(const T* block, int rows, const T* v, int64_t v_stride, T* sums) {
    using Few = Numbers<T>;
    typename Few::Vec acc[C][kSumVecs] = {};
    for (int i = 0; i < rows; ++i) {
      typename Few::Vec row[kSumVecs];
      for (int s = 0; s < kSumVecs; ++s) {
        row[s] = Few::at(block + i * kTileStride + s * Few::kLanes);
      }
      for (int c = 0; c < C; ++c) {
        const T factor = v[i * v_stride + c];
        for (int s = 0; s < kSumVecs; ++s) {
          acc[c][s] += row[s] * factor;
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      for (int s = 0; s < kSumVecs; ++s) {
        Few::at(sums + c * kTile + s * Few::kLanes) += acc[c][s];
      }
    }
  }

  template <int C, class T>
  GATEDOPS_INLINE static void sum_columns(const T* block, int rows, const T* v, int64_t v_stride, T* sums) {
    for (int i = 0; i < rows; i += kChain) {
      sum_chain<C>(block + i * kTileStride, rows - i < kChain ? rows - i : kChain, v + i * v_stride, v_stride, sums);
    }
  }

  template <int C, class T>
  static void sum_every_column(const T* block, int rows, int cols, const T* v, int64_t v_stride, T* sums) {
    for (int j = 0; j < cols; j += kSumVecs * Numbers<T>::kLanes) {
      sum_columns<C>(block + j, rows, v, v_stride, sums + j);
    }
  }

  template <class T>
  static void contract(const T* block, int rows, int cols, const T* v, int64_t v_stride, int columns, T* sums) {
    static_assert(kFewAtOnce == 5 && kBlock % (kSumVecs * Numbers<T>::kLanes) == 0);
    for (int c = 0; c < columns; c += kFewAtOnce, v += kFewAtOnce, sums += kFewAtOnce * kTile) {
      switch (columns - c) {
        case 1:
          sum_every_column<1>(block, rows, cols, v, v_stride, sums);
          break;
        case 2:
          sum_every_column<2>(block, rows, cols, v, v_stride, sums);
          break;
        case 3:
          sum_every_column<3>(block, rows, cols, v, v_stride, sums);
          break;
        case 4:
          sum_every_column<4>(block, rows, cols, v, v_stride, sums);
          break;
        default:
          sum_every_column<kFewAtOnce>(block, rows, cols, v, v_stride, sums);
      }
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
