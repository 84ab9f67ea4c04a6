// What csrc/cuda/instructions.h declares, and the parts of CUDA C++ that kernels use, on the CPU. Fragment
// layouts are written down from the PTX ISA, independently of csrc/cuda/fragments.h. Asynchronous copies arrive
// at a random moment between their issue and the wait for them; what is read out of bounds is an error.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>

#include "fibers.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct Dim {
  unsigned x;
};
inline Dim blockIdx, gridDim;
struct ThreadIndex {
  struct Current {
    operator unsigned() const {
      return static_cast<unsigned>(emulation::Fibers::current());
    }
  } x;
};
inline ThreadIndex threadIdx;

using std::max;
using std::min;

struct __nv_bfloat16 {
  uint16_t bits = 0;
};

template <class To, class From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}

inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline float __int2float_rn(int32_t value) {
  return static_cast<float>(value);
}
inline float __int_as_float(int32_t bits) {
  return bits_as<float>(bits);
}
inline double __hiloint2double(int32_t high, int32_t low) {
  return bits_as<double>(uint64_t{static_cast<uint32_t>(high)} << 32 | static_cast<uint32_t>(low));
}
inline float __bfloat162float(__nv_bfloat16 value) {
  return bits_as<float>(uint32_t{value.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {  // finite values
  const auto bits = bits_as<uint32_t>(value);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulation {

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool done = false;

  void perform() {
    if (!done) {
      std::memset(to, 0, 16);
      std::memcpy(to, from, static_cast<size_t>(bytes));
      done = true;
    }
  }
};

struct Thread {
  std::vector<Copy> open;                // not yet in a group
  std::deque<std::vector<Copy>> groups;  // oldest first
};

struct Warp {
  Barrier barrier;
  void* arguments[32];
};

// One block's state.
struct Gpu {
  static inline Gpu* active = nullptr;

  Gpu(int threads, size_t shared_bytes)
      : shared(shared_bytes, 0xff), threads(static_cast<size_t>(threads)), warps(static_cast<size_t>(threads / 32)) {
    active = this;
  }

  std::vector<unsigned char> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier block;
  std::vector<std::pair<const void*, size_t>> readable;  // global memory that copies may read

  Thread& thread() {
    return threads[static_cast<size_t>(Fibers::current())];
  }
  unsigned char* at(uint32_t address, size_t bytes) {
    if (address + bytes > shared.size()) {
      throw std::out_of_range("shared memory address " + std::to_string(address));
    }
    return shared.data() + address;
  }
  void require_readable(const void* from, size_t bytes) const {
    const auto* begin = static_cast<const char*>(from);
    for (const auto& [start, size] : readable) {
      const auto* first = static_cast<const char*>(start);
      if (begin >= first && begin + bytes <= first + size) {
        return;
      }
    }
    throw std::out_of_range("a copy reads outside the words");
  }

  // All lanes of a warp call this with their arguments; the last one runs collective(arguments of all lanes).
  template <class Arguments, class Collective>
  static void warp_collective(Arguments arguments, const Collective& collective) {
    Warp& warp = active->warps[static_cast<size_t>(Fibers::current() / 32)];
    warp.arguments[Fibers::current() % 32] = &arguments;
    warp.barrier.arrive_and_wait(32, [&] {
      Arguments* lanes[32];
      for (int lane = 0; lane < 32; ++lane) {
        lanes[lane] = static_cast<Arguments*>(warp.arguments[lane]);
      }
      collective(lanes);
    });
  }
};

}  // namespace emulation

inline void __syncthreads() {
  auto& gpu = *emulation::Gpu::active;
  gpu.block.arrive_and_wait(static_cast<int>(gpu.threads.size()), [] {});
}

namespace gatedops::cuda {

inline unsigned char* shared_memory() {
  return emulation::Gpu::active->shared.data();
}

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - shared_memory());
}

inline void copy_async(uint32_t to, const void* from, int bytes) {
  auto& gpu = *emulation::Gpu::active;
  if (to % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0 || bytes < 0 || bytes > 16) {
    throw std::invalid_argument("cp.async: needs 16-byte aligned addresses and 0 to 16 bytes");
  }
  gpu.require_readable(from, static_cast<size_t>(bytes));
  gpu.thread().open.push_back({gpu.at(to, 16), static_cast<const unsigned char*>(from), bytes});
  if (emulation::Fibers::coin()) {
    gpu.thread().open.back().perform();
  }
}

inline void commit_copies() {
  auto& thread = emulation::Gpu::active->thread();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

template <int pending>
void wait_for_copies() {
  auto& groups = emulation::Gpu::active->thread().groups;
  for (; groups.size() > pending; groups.pop_front()) {
    for (auto& copy : groups.front()) {
      copy.perform();
    }
  }
}

struct MatrixLoad {
  uint32_t* to;
  uint32_t row_address;
};

// ldmatrix.m8n8.x4.b16: lane l gets from matrix i the 32 bits l % 4 of row l / 4, whose address lane 8 i + l / 4 gave.
inline void load_matrices(uint32_t (&to)[4], uint32_t row_address) {
  emulation::Gpu::warp_collective(MatrixLoad{to, row_address}, [](MatrixLoad** lanes) {
    for (int i = 0; i < 4; ++i) {
      uint32_t banks = 0;
      for (int row = 0; row < 8; ++row) {
        const uint32_t address = lanes[8 * i + row]->row_address;
        if (address % 16 != 0 || (banks & 1u << address / 16 % 8) != 0) {
          throw std::invalid_argument("ldmatrix: unaligned rows, or two in the same banks");
        }
        banks |= 1u << address / 16 % 8;
      }
      for (int lane = 0; lane < 32; ++lane) {
        const uint32_t address = lanes[8 * i + lane / 4]->row_address + lane % 4 * 4;
        std::memcpy(&lanes[lane]->to[i], emulation::Gpu::active->at(address, 4), 4);
      }
    }
  });
}

struct OverlapCount {
  int32_t* counts;
  const uint32_t* a;
  uint32_t b[2];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k256": lane = 4 * group + t. 32 gates of A: register 0 row group, 1 row
// group + 8, gates 32 t; 2 and 3 the same rows, gates 128 + 32 t. B: column group, gates 32 t and 128 + 32 t. C: row
// group (registers 0, 1) and group + 8 (2, 3), columns 2 t and 2 t + 1.
inline void count_overlaps(int32_t (&counts)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::Gpu::warp_collective(OverlapCount{counts, a, {b0, b1}}, [](OverlapCount** lanes) {
    uint32_t rows[16][8], cols[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, t = lane % 4;
      rows[group][t] = lanes[lane]->a[0];
      rows[group + 8][t] = lanes[lane]->a[1];
      rows[group][4 + t] = lanes[lane]->a[2];
      rows[group + 8][4 + t] = lanes[lane]->a[3];
      cols[group][t] = lanes[lane]->b[0];
      cols[group][4 + t] = lanes[lane]->b[1];
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i < 2 ? 0 : 8), col = 2 * (lane % 4) + (i & 1);
        for (int word = 0; word < 8; ++word) {
          lanes[lane]->counts[i] += __builtin_popcount(rows[row][word] & cols[col][word]);
        }
      }
    }
  });
}

}  // namespace gatedops::cuda
