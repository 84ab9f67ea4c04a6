// Lines of finished blocks on their way to memory, past the caches. A kernel that counts writes one of them a step:
// one by one they cost it next to nothing, where a whole block at once stalls it until the memory has taken it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gatedops::cpu {

class LineQueue {
 public:
  static constexpr int kLine = 64;  // bytes
  struct Line {
    const std::byte* from;
    std::byte* to;
  };

  // Whether rows of `bytes` bytes, `stride` bytes apart, are whole lines.
  static bool takes(const void* to, int64_t stride, int64_t bytes) {
    return (reinterpret_cast<uintptr_t>(to) | static_cast<uint64_t>(stride | bytes)) % kLine == 0;
  }

  bool empty() const {
    return first_ == end_;
  }

  // Takes over rows that stay as they are until the queue is empty: at most two lots at a time, each of at least one
  // line. Strides and bytes of a row are in bytes.
  void push(const void* from, int64_t from_stride, void* to, int64_t to_stride, int rows, int64_t bytes) {
    if (empty()) {
      first_ = end_ = 0;
    }
    lots_[end_++] = {static_cast<const std::byte*>(from), from_stride, bytes,
                     static_cast<std::byte*>(to),         to_stride,   rows};
  }

  Line pop() {
    Lot& lot = lots_[first_];
    const Line line{lot.from + at_, lot.to + at_};
    at_ += kLine;
    if (at_ == lot.bytes) {
      at_ = 0;
      lot.from += lot.from_stride;
      lot.to += lot.to_stride;
      first_ += --lot.rows == 0;
    }
    return line;
  }

 private:
  // The two addresses lie apart: loaded as one vector, they would wait until the separate stores of both, behind all
  // lines written before, have left the core.
  struct Lot {
    const std::byte* from;
    int64_t from_stride, bytes;
    std::byte* to;
    int64_t to_stride;
    int rows;
  };
  Lot lots_[2];
  int first_ = 0, end_ = 0;
  int64_t at_ = 0;  // bytes of the first row that are gone
};

}  // namespace gatedops::cpu
