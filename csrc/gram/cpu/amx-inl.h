// The tile registers of AMX and their instructions. Include this file after kernels.h and
// target_avx512.h.
namespace gatedops::cpu {
namespace {

// AMX has eight tile registers of 16 rows x 64 bytes. The code names the instructions instead of intrinsics: the
// intrinsics of GCC 12 do not tell the compiler which memory they read and write.

// Configures all eight registers for the calling thread as long as this object lives.
class TileRegisters {
 public:
  TileRegisters() {
    Config config;
    asm volatile("ldtilecfg %0" : : "m"(config));
  }
  ~TileRegisters() {
    asm volatile("tilerelease");
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette = 1, first_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

template <int kRegister>
void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kRegister));
}

// Loads rows of 64 bytes, `stride` bytes apart.
template <int kRegister>
void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kRegister) : "memory");
}

// Loads rows that will not be read again soon without evicting what lies in the L1 cache.
template <int kRegister>
void stream_tile(const void* from, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kRegister) : "memory");
}

template <int kRegister>
void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kRegister) : "memory");
}

// sum[m][n] += sum_k sum_{i < 4} x[m][4 k + i] * y[k][4 n + i], in int32. All bytes are unsigned here and signed in
// multiply_digits.
template <int kSum, int kX, int kY>
void multiply_unsigned() {
  asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kY));
}

template <int kSum, int kX, int kY>
void multiply_digits() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kY));
}

GATEDOPS_INLINE void clear_sums() {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
}

// Stores 32 x 32 sums, `stride` elements between rows.
GATEDOPS_INLINE void store_sums(int32_t* counts, int64_t stride) {
  const auto bytes = stride * int64_t{sizeof(int32_t)};
  store_tile<0>(counts, bytes);
  store_tile<1>(counts + kGroupRows, bytes);
  store_tile<2>(counts + kGroupRows * stride, bytes);
  store_tile<3>(counts + kGroupRows * stride + kGroupRows, bytes);
}

}  // namespace
}  // namespace gatedops::cpu
