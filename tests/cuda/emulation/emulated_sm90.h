// Emulates the instructions of sm_90: barriers that count bytes, bulk copies to one block or a cluster, and wgmma.
#pragma once

#include "emulated_gpu.h"

namespace gatedops::cuda {

#define GATEDOPS_HAS_WGMMA

struct alignas(64) TensorMap {
  // This points to element (0, 0).
  const unsigned char* base;
  int64_t cols, rows, row_bytes;
  // These count elements of 4 bytes.
  int32_t box_cols, box_rows;
  unsigned char rest[128 - 40];
};

inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
  emulation::Gpu::active().barriers[barrier] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0, 0};
}

inline void publish_barriers() {}

inline void arrive(uint32_t barrier) {
  emulation::Gpu::active().barrier(barrier).update(1, 0);
}

inline void arrive_at(uint32_t barrier, int rank) {
  emulation::Gpu::cluster.at(static_cast<size_t>(rank))->barrier(barrier).update(1, 0);
}

inline void wait_for_cluster() {
  static emulation::Barrier barrier;
  const auto blocks = emulation::Gpu::cluster.size();
  barrier.arrive_and_wait(static_cast<int>(blocks) * emulation::Cluster::block_threads, [] {
    for (auto* gpu : emulation::Gpu::cluster) {
      if (!gpu->boxes.empty()) {
        throw std::logic_error("a copy is under way at a barrier of the cluster");
      }
    }
  });
}

inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  emulation::Gpu::active().barrier(barrier).update(1, static_cast<int>(bytes));
}

inline void wait_for_phase(uint32_t barrier, uint32_t parity) {
  emulation::Fibers::wait([&] {
    for (auto* gpu : emulation::Gpu::cluster) {
      gpu->finish_a_box();
    }
    return emulation::Gpu::active().barrier(barrier).phase % 2 != parity;
  });
}

// Applies the 128-byte swizzle: bits 7-9 of a shared address are XORed to bits 4-6.
inline uint32_t swizzled(uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

// The copy arrives in each block at a moment of its own.
inline void copy_box_to(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier, uint16_t ranks) {
  if (to % 1024 != 0 || map.box_cols != 32) {
    throw std::invalid_argument("TMA: needs boxes of 128 bytes a row at multiples of 1024");
  }
  for (size_t rank = 0; rank < 16; ++rank) {
    if ((ranks >> rank & 1) == 0) {
      continue;
    }
    auto& gpu = *emulation::Gpu::cluster.at(rank);
    gpu.boxes.push_back([=, &gpu] {
      for (int r = 0; r < map.box_rows; ++r) {
        for (int c = 0; c < map.box_cols; ++c) {
          const uint32_t address = swizzled(to + static_cast<uint32_t>((r * map.box_cols + c) * 4));
          const bool inside = row + r < map.rows && column + c < map.cols;
          const auto* from = map.base + (row + r) * map.row_bytes + (column + c) * 4;
          if (inside) {
            gpu.require_readable(from, 4);
            std::memcpy(gpu.at(address, 4), from, 4);
          } else {
            std::memset(gpu.at(address, 4), 0, 4);
          }
        }
      }
      gpu.barrier(barrier).update(0, -map.box_rows * map.box_cols * 4);
    });
  }
}

inline void copy_box(uint32_t to, const TensorMap& map, int column, int row, uint32_t barrier) {
  copy_box_to(to, map, column, row, barrier, static_cast<uint16_t>(1 << emulation::Cluster::rank()));
}

inline void wait_among(int id, int threads) {
  emulation::Gpu::active().named[id].arrive_and_wait(threads, [] {});
}

template <int registers>
void give_registers() {}
template <int registers>
void take_registers() {}
inline void begin_products() {}
inline void commit_products() {}

template <int pending, class Sum>
void wait_for_products(Sum (&)[64]) {
  static_assert(pending == 0, "groups are not told apart here");
  auto& group = emulation::Gpu::active().warpgroup();
  group.barrier.arrive_and_wait(128, [&] {
    for (auto& product : group.products) {
      product();
    }
    group.products.clear();
  });
}

// Returns word `word` of row `row` of a K-major operand with the 128-byte swizzle, which a descriptor describes (PTX
// ISA, "Matrix Descriptor Format"). Its rows are 128 bytes; groups of eight rows lie a stride apart.
inline uint32_t operand_word(uint64_t descriptor, int row, int word) {
  const auto start = static_cast<uint32_t>(descriptor & 0x3FFF) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
    throw std::invalid_argument("descriptor: not the 128-byte swizzle at base offset 0");
  }
  const uint32_t address =
      start + static_cast<uint32_t>(row / 8) * stride + static_cast<uint32_t>(row % 8 * 128 + word * 4);
  uint32_t value;
  std::memcpy(&value, emulation::Gpu::active().at(swizzled(address), 4), 4);
  return value;
}

// Emulates wgmma.m64n128k256 and, with 32 bytes or 8 floats in the place of 256 gates, m64n128k32 and m64n128k8. The
// products are computed at the wait, when an operand that was given back too early may already be overwritten. Register
// i of lane 4 g + t of warp w is in row 16 w + g, or 8 below if i % 4 >= 2, and in column 8 (i / 4) + 2 t + i % 2.
// of_rows(sum, eight words, eight words) returns the new sum.
template <class Sum, class OfRows>
void multiply_in_a_warpgroup(Sum* sums, uint64_t a, uint64_t b, const OfRows& of_rows) {
  auto& group = emulation::Gpu::active().warpgroup();
  group.arguments[emulation::Cluster::thread() % 128] = sums;
  group.barrier.arrive_and_wait(128, [&] {
    std::vector<Sum*> threads(128);
    for (int i = 0; i < 128; ++i) {
      threads[static_cast<size_t>(i)] = static_cast<Sum*>(group.arguments[i]);
    }
    group.products.push_back([=] {
      uint32_t rows[64][8], cols[128][8];
      for (int word = 0; word < 8; ++word) {
        for (int row = 0; row < 64; ++row) {
          rows[row][word] = operand_word(a, row, word);
        }
        for (int col = 0; col < 128; ++col) {
          cols[col][word] = operand_word(b, col, word);
        }
      }
      for (int thread = 0; thread < 128; ++thread) {
        const int g = thread % 32 / 4, t = thread % 4;
        for (int i = 0; i < 64; ++i) {
          const int row = 16 * (thread / 32) + g + (i % 4 >= 2 ? 8 : 0), col = 8 * (i / 4) + 2 * t + i % 2;
          Sum& sum = threads[static_cast<size_t>(thread)][i];
          sum = of_rows(sum, rows[row], cols[col]);
        }
      }
    });
  });
}

template <int32_t (*of_words)(uint32_t, uint32_t)>
int32_t add_words(int32_t sum, const uint32_t* a, const uint32_t* b) {
  for (int word = 0; word < 8; ++word) {
    add(sum, of_words(a[word], b[word]));
  }
  return sum;
}

inline void count_overlaps(int32_t (&counts)[64], uint64_t a, uint64_t b) {
  multiply_in_a_warpgroup(counts, a, b, add_words<overlap_of>);
}
inline void multiply_bytes(int32_t (&sums)[64], uint64_t a, uint64_t b) {
  multiply_in_a_warpgroup(sums, a, b, add_words<product_of>);
}

// Multiplies TF32 numbers. Their products are exact, and the sum of all nine terms is truncated to float32.
template <bool kAdd>
void multiply_floats(float (&sums)[64], uint64_t a, uint64_t b) {
  multiply_in_a_warpgroup(sums, a, b, [](float sum, const uint32_t* x, const uint32_t* y) {
    double total = kAdd ? sum : 0.0;
    for (int word = 0; word < 8; ++word) {
      const auto left = bits_as<float>(x[word] & 0xFFFFE000u), right = bits_as<float>(y[word] & 0xFFFFE000u);
      total += static_cast<double>(left) * static_cast<double>(right);
    }
    const auto nearest = static_cast<float>(total);
    const bool beyond = std::abs(static_cast<double>(nearest)) > std::abs(total);
    return beyond ? std::nextafter(nearest, 0.0f) : nearest;
  });
}

}  // namespace gatedops::cuda
