// New tensors for results that are written once, from end to end.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gatedops::cpu {

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

// Asks the system to back the whole huge pages inside [data, data + bytes) with huge pages. A fresh n x n result gets
// its memory while it is written. Page faults for every 4 KiB would then take several times as long as computing the
// Gram of a layer. A system that has no huge pages, or refuses them, goes on with small pages.
inline void prefer_huge_pages(const void* data, uint64_t bytes) {
#if defined(__linux__)
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + bytes) / kHugePage * kHugePage;
  if (first < end) {
    madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  }
#else
  static_cast<void>(data);
  static_cast<void>(bytes);
#endif
}

// Returns a new tensor on the device of `like`, which the caller fills. It has the dtype of `like` if none is given.
inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
    std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  torch::stable::Tensor out = torch::stable::new_empty(like, sizes, dtype);
  prefer_huge_pages(out.const_data_ptr(), static_cast<uint64_t>(out.numel()) * out.element_size());
  return out;
}

}  // namespace gatedops::cpu
