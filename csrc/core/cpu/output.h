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

// Asks for huge pages under the whole ones of [data, data + bytes). A fresh n x n result is given its memory while it
// is written: a page fault for every 4 KiB takes several times as long as the Gram of a layer that fills them.
// A system without huge pages, or that refuses, goes on as before.
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

// A new tensor on the device of `like`, and of its dtype where none is given, that the caller fills.
inline torch::stable::Tensor new_output(
    const torch::stable::Tensor& like, const std::vector<int64_t>& sizes,
    std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  torch::stable::Tensor out = torch::stable::new_empty(like, sizes, dtype);
  prefer_huge_pages(out.const_data_ptr(), static_cast<uint64_t>(out.numel()) * out.element_size());
  return out;
}

}  // namespace gatedops::cpu
