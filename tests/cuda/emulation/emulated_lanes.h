// Emulates on the CPU what csrc/conv_gram/cuda/device.h declares.
#pragma once

#include "emulated_gpu.h"

namespace gatedops::cuda {

template <class T>
T times(T a, T b) {
  return a * b;
}
template <class T>
T plus(T a, T b) {
  return a + b;
}

template <class T>
struct Shuffle {
  T value;
  int lane;
  T* result;
};

template <class T>
T shuffled(T value, int lane) {
  T result;
  emulation::Gpu::warp_collective(Shuffle<T>{value, lane, &result}, [](Shuffle<T>** lanes) {
    for (int i = 0; i < 32; ++i) {
      if (lanes[i]->lane < 0 || lanes[i]->lane >= 32) {
        throw std::out_of_range("a shuffle from lane " + std::to_string(lanes[i]->lane));
      }
      *lanes[i]->result = lanes[lanes[i]->lane]->value;
    }
  });
  return result;
}

inline int population(uint32_t word) {
  return __builtin_popcount(word);
}

inline float count_as(int32_t counted, float) {
  return bits_as<float>(counted) - 8388608.0f;
}
inline double count_as(int32_t counted, double) {
  return bits_as<double>(uint64_t{0x43300000} << 32 | static_cast<uint32_t>(counted)) - 4503599627370496.0;
}

struct WordPair {
  uint32_t low, high;
};

inline WordPair word_pair(const uint32_t* words) {
  if (reinterpret_cast<uintptr_t>(words) % 8 != 0) {
    throw std::invalid_argument("a load of two words at an odd place");
  }
  emulation::Gpu::active().require_readable(words, 8);
  return {words[0], words[1]};
}

template <class Number>
Number* kept(Number* pointer) {
  return pointer;
}

inline unsigned char* conv_shared_memory() {
  return emulation::Gpu::active().shared.data();
}

}  // namespace gatedops::cuda
