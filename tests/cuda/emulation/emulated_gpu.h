// Emulates on the CPU what csrc/core/cuda/instructions.h declares. Layouts of fragments are taken from the PTX ISA,
// independently of csrc/gram/cuda/layout.h. Asynchronous copies arrive at a random moment between their start and the
// wait for them. A read out of bounds is an error.
#pragma once

#include <deque>
#include <map>
#include <utility>

#include "emulated_cuda.h"

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
  // These copies are not yet in a group.
  std::vector<Copy> open;
  // The oldest group comes first.
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  Barrier barrier;
  void* arguments[32];
};

// An mbarrier. A phase ends when all threads have arrived and all expected bytes are there.
struct PhaseBarrier {
  int expected = 0, pending = 0, bytes = 0;
  uint32_t phase = 0;

  void update(int arrivals, int more_bytes) {
    pending -= arrivals;
    bytes += more_bytes;
    if (pending < 0) {
      throw std::logic_error("mbarrier: more arrivals than it was initialised for");
    }
    if (pending == 0 && bytes == 0) {
      pending = expected;
      ++phase;
      Fibers::progress();
    }
  }
};

struct Warpgroup {
  Barrier barrier;
  void* arguments[128];
  std::vector<std::function<void()>> products;  // These products are not yet computed.
};

// The state of one block.
struct Gpu {
  // The blocks are in the order of their ranks.
  static inline std::vector<Gpu*> cluster;

  static Gpu& active() {
    return *cluster[static_cast<size_t>(Cluster::rank())];
  }

  Gpu(int threads, size_t shared_bytes)
      : shared(shared_bytes, 0xff), threads(static_cast<size_t>(threads)), warps(static_cast<size_t>(threads / 32)) {}

  std::vector<unsigned char> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier block;
  // Copies may read this global memory.
  std::vector<std::pair<const void*, size_t>> readable;
  std::vector<Warpgroup> warpgroups = std::vector<Warpgroup>(threads.size() / 128);
  std::map<int, Barrier> named;
  // Each barrier is found by its shared address.
  std::map<uint32_t, PhaseBarrier> barriers;
  std::vector<std::function<void()>> boxes;  // These copies are under way.

  // Lets one of the copies under way arrive.
  void finish_a_box() {
    if (!boxes.empty() && Fibers::coin()) {
      const auto box = boxes.begin() + static_cast<long>(Fibers::any(boxes.size()));
      const auto perform = *box;
      boxes.erase(box);
      perform();
      Fibers::progress();
    }
  }

  Thread& thread() {
    return threads[static_cast<size_t>(Cluster::thread())];
  }
  Warpgroup& warpgroup() {
    return warpgroups[static_cast<size_t>(Cluster::thread() / 128)];
  }
  unsigned char* at(uint32_t address, size_t bytes) {
    if (address + bytes > shared.size()) {
      throw std::out_of_range("shared memory address " + std::to_string(address));
    }
    return shared.data() + address;
  }
  PhaseBarrier& barrier(uint32_t address) {
    const auto found = barriers.find(address);
    if (found == barriers.end()) {
      throw std::logic_error("mbarrier: not initialised");
    }
    return found->second;
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
    Warp& warp = active().warps[static_cast<size_t>(Cluster::thread() / 32)];
    warp.arguments[Cluster::thread() % 32] = &arguments;
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
  auto& gpu = emulation::Gpu::active();
  gpu.block.arrive_and_wait(static_cast<int>(gpu.threads.size()), [] {});
}

namespace gatedops::cuda {

inline unsigned char* shared_memory() {
  return emulation::Gpu::active().shared.data();
}

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - shared_memory());
}

template <class Value, int kCount>
struct Together {
  Value value[kCount];
};

template <class Value, int kCount>
void require_together(const Value* place) {
  if (reinterpret_cast<uintptr_t>(place) % sizeof(Together<Value, kCount>) != 0) {
    throw std::invalid_argument("a load or store of several values at a place that is not a multiple of their size");
  }
}
template <class Value, int kCount>
void load_together(Together<Value, kCount>& to, const Value* from) {
  require_together<Value, kCount>(from);
  std::copy_n(from, kCount, to.value);
}
template <class Value, int kCount>
void store_together(Value* to, const Together<Value, kCount>& from) {
  require_together<Value, kCount>(to);
  std::copy_n(from.value, kCount, to);
}

inline void copy_async(uint32_t to, const void* from, int bytes) {
  auto& gpu = emulation::Gpu::active();
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
  auto& thread = emulation::Gpu::active().thread();
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}

template <int pending>
void wait_for_copies() {
  auto& groups = emulation::Gpu::active().thread().groups;
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

// Emulates ldmatrix.m8n8.x4.b16. Lane l gets from matrix i word l % 4 of row l / 4, whose address lane 8 i + l / 4
// gave.
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
        std::memcpy(&lanes[lane]->to[i], emulation::Gpu::active().at(address, 4), 4);
      }
    }
  });
}

// What a tensor core adds for two words of its operands: how many gates are on in both, or the sum of the products of
// their four bytes.
inline int32_t overlap_of(uint32_t a, uint32_t b) {
  return __builtin_popcount(a & b);
}
inline int32_t product_of(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (int byte = 0; byte < 32; byte += 8) {
    sum += (a >> byte & 0xff) * (b >> byte & 0xff);
  }
  return static_cast<int32_t>(sum);
}
inline void add(int32_t& to, int32_t value) {  // The sum is modulo 2^32.
  to = static_cast<int32_t>(static_cast<uint32_t>(to) + static_cast<uint32_t>(value));
}

struct WarpProduct {
  int32_t* sums;
  const uint32_t* a;
  uint32_t b[2];
};

// The fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k256". "mma.m16n8k32" with .u8 has the same
// fragments, with a word of four bytes in the place of a word of 32 gates. Lane 4 * group + t holds these parts:
// - A: registers 0 and 1 hold word t of rows group and group + 8; registers 2 and 3 hold word 4 + t of the same rows.
// - B: the two registers hold words t and 4 + t of column group.
// - C: registers 0 and 1 hold row group, registers 2 and 3 hold row group + 8, each in columns 2 t and 2 t + 1.
inline void multiply_in_a_warp(
    int32_t* sums, const uint32_t* a, uint32_t b0, uint32_t b1, int32_t (*of_words)(uint32_t, uint32_t)) {
  emulation::Gpu::warp_collective(WarpProduct{sums, a, {b0, b1}}, [&](WarpProduct** lanes) {
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
          add(lanes[lane]->sums[i], of_words(rows[row][word], cols[col][word]));
        }
      }
    }
  });
}

inline void count_overlaps(int32_t (&counts)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_in_a_warp(counts, a, b0, b1, overlap_of);
}
inline void multiply_bytes(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_in_a_warp(sums, a, b0, b1, product_of);
}

template <class Value>
struct LaneValue {
  Value given, found;
};

// Returns to each lane of_warp(lane, the values given by all lanes).
template <class Value, class OfWarp>
Value exchange_in_warp(Value value, const OfWarp& of_warp) {
  LaneValue<Value> mine{value, value};
  LaneValue<Value>* shared = &mine;
  emulation::Gpu::warp_collective(shared, [&](LaneValue<Value>*** lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      (*lanes[lane])->found = of_warp(lane, [&](int other) { return (*lanes[other])->given; });
    }
  });
  return mine.found;
}

inline int uniform(int value) {
  return exchange_in_warp(value, [](int lane, const auto& given) {
    if (given(lane) != given(0)) {
      throw std::logic_error("uniform: lanes have different values");
    }
    return given(0);
  });
}
inline void wait_in_warp() {
  uniform(0);
}
inline uint32_t vote(bool yes) {
  return exchange_in_warp<uint32_t>(yes, [](int, const auto& given) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      votes |= given(lane) << lane;
    }
    return votes;
  });
}
// Lanes may ask different lanes, so each also gives the lane that it asks.
template <class Value>
Value from_lane(Value value, int lane) {
  struct Question {
    Value value;
    int lane;
  };
  return exchange_in_warp(
             Question{value, lane},
             [](int asking, const auto& given) { return Question{given(given(asking).lane).value, 0}; })
      .value;
}
template <class Value>
Value from_lane_before(Value value) {
  return exchange_in_warp(value, [](int lane, const auto& given) { return given(lane > 0 ? lane - 1 : 0); });
}
inline int first_lane(uint32_t lanes) {
  return __builtin_ffs(static_cast<int>(lanes)) - 1;
}

}  // namespace gatedops::cuda

#include "emulated_sm90.h"
