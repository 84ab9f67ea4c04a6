// The tile registers of AMX: eight of 16 rows x 64 bytes. Written as instructions and not as intrinsics: those of
// GCC 12 tell the compiler nothing of the memory they read and write.
#pragma once

#include <cstdint>

namespace gatedops::cpu {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 1024;

// Configures all eight registers for the calling thread while it lives.
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

// Rows of 64 bytes, `stride` bytes apart.
template <int kRegister>
void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kRegister) : "memory");
}

// The same for rows that will not be read again soon: what lies in the L1 cache stays there.
template <int kRegister>
void stream_tile(const void* from, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kRegister) : "memory");
}

template <int kRegister>
void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kRegister) : "memory");
}

// sum[m][n] += sum_k sum_{i < 4} x[m][4 k + i] * y[k][4 n + i], in int32; bytes of x are unsigned, of y unsigned or
// signed.
template <int kSum, int kX, int kY>
void multiply_unsigned() {
  asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kY));
}

template <int kSum, int kX, int kY>
void multiply_signed() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kX), "i"(kY));
}

}  // namespace
}  // namespace gatedops::cpu
