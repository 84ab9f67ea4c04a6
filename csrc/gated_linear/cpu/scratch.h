// Memory for what a backward needs between two of its steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace gatedops::cpu {

// `bytes` of memory, aligned to a cache line, until the end of the scope. Up to kKept bytes the calling thread keeps
// them for its next call: fresh memory costs page faults, which take longer than masking a gradient does. One Scratch
// at a time per thread.
class Scratch {
 public:
  static constexpr size_t kKept = size_t{32} << 20;

  explicit Scratch(size_t bytes) {
    if (bytes > kKept) {
      own_ = allocate(bytes);
      data_ = own_.get();
      return;
    }
    thread_local Kept kept;
    if (bytes > kept.bytes) {
      kept = Kept{};
      kept = Kept{allocate(bytes), bytes};
    }
    data_ = kept.memory.get();
  }

  // For any thread.
  char* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(char* memory) const {
      ::operator delete(memory, kAlignment);
    }
  };
  using Memory = std::unique_ptr<char, Release>;
  struct Kept {
    Memory memory;
    size_t bytes = 0;
  };

  static Memory allocate(size_t bytes) {
    return Memory(static_cast<char*>(::operator new(bytes, kAlignment)));
  }

  Memory own_;
  char* data_ = nullptr;
};

}  // namespace gatedops::cpu
