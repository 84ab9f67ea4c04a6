// How finished parts of a Gram, and their mirrored halves, reach the output.
#pragma once

#include <algorithm>
#include <vector>

#include "gram_problem.h"

namespace gatedops::cpu {

// Outputs larger than this are written past the caches.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

inline void store(const TileKernels& k, const float* from, int rows, int cols, float* to, int64_t stride, bool stream) {
  k.store_f32(from, rows, cols, to, stride, stream);
}

inline void store(
    const TileKernels& k, const double* from, int rows, int cols, double* to, int64_t stride, bool stream) {
  k.store_f64(from, rows, cols, to, stride, stream);
}

inline void transpose(const TileKernels& k, const float* block, int rows, int cols, float* turned) {
  k.transpose_f32(block, rows, cols, turned);
}

inline void transpose(const TileKernels& k, const double* block, int rows, int cols, double* turned) {
  k.transpose_f64(block, rows, cols, turned);
}

// The output of a Gram: every block at its place and, of a symmetric one, at the mirrored place.
template <class T>
class GramStore {
 public:
  GramStore(const GramProblem& problem, T* out, int64_t rows, int64_t cols, int64_t stride)
      : kernels_(problem.kernels),
        out_(out),
        stride_(stride),
        stream_(rows * cols * static_cast<int64_t>(sizeof(T)) > kStreamBytes),
        queue_(stream_ && problem.by_block()),
        mirror_(problem.symmetric) {}

  // Values stay the store's until the next block, or until finish().
  void block(const TileRect& rect, const T* values, TileBuffers<T>& b) const {
    finish(b);
    send(values, rect.rows, rect.cols, at(rect.i, rect.j), b);
    if (mirror_ && !rect.diagonal) {
      b.turned.resize(kBlock * kTileStride);
      transpose(kernels_, values, rect.rows, rect.cols, b.turned.data());
      send(b.turned.data(), rect.cols, rect.rows, at(rect.j, rect.i), b);
    }
  }

  // Writes what has not been written on the way.
  void finish(TileBuffers<T>& b) const {
    kernels_.write_lines(b.lines);
  }

 private:
  T* at(int64_t i, int64_t j) const {
    return out_ + i * stride_ + j;
  }

  // Whole lines leave while the next block is made.
  void send(const T* from, int rows, int cols, T* to, TileBuffers<T>& b) const {
    constexpr int64_t kSize = sizeof(T);
    if (queue_ && LineQueue::takes(to, stride_ * kSize, cols * kSize)) {
      b.lines.push(from, kTileStride * kSize, to, stride_ * kSize, rows, cols * kSize);
    } else {
      store(kernels_, from, rows, cols, to, stride_, stream_);
    }
  }

  const TileKernels& kernels_;
  T* out_;
  int64_t stride_;
  bool stream_, queue_, mirror_;
};

}  // namespace gatedops::cpu
