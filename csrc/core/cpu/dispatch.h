// Chooses between instruction sets, for every family of ops.
//
// A family lists its kernels in a struct of function pointers, K. Each file of an instruction set makes one constexpr K
// and ends with GATEDOPS_KERNELS_OF(isa, K); active_kernels<K>() then returns the K of the set in use. A family that
// has no kernels for this set uses the kernels of the set that it builds on.
//
// GATEDOPS_KERNELS_OF comes after target_end.h, so that the code that runs while the library is loaded is compiled for
// the baseline: a CPU without the set must be able to run it.
#pragma once

#include <type_traits>

#include "core/cpu/isa.h"

namespace gatedops::cpu {

template <class K>
class KernelsOf {
 public:
  KernelsOf(Isa isa, const K& kernels) {
    table()[static_cast<int>(isa)] = &kernels;
  }

  static const K& of(Isa isa) {
    while (table()[static_cast<int>(isa)] == nullptr) {
      isa = builds_on(isa);  // The loop ends at serial, which every family has.
    }
    return *table()[static_cast<int>(isa)];
  }

 private:
  static const K** table() {
    // Indexed by instruction set. It is zeroed before any code of the library runs.
    static const K* kernels[kIsas] = {};
    return kernels;
  }
};

template <class K>
const K& kernels_of(Isa isa) {
  return KernelsOf<K>::of(isa);
}

template <class K>
const K& active_kernels() {
  return kernels_of<K>(active_isa());
}

}  // namespace gatedops::cpu

#define GATEDOPS_KERNELS_OF(isa, value)                                                      \
  namespace gatedops::cpu {                                                                  \
  namespace {                                                                                \
  const KernelsOf<std::remove_const_t<decltype(value)>> registered_##value(Isa::isa, value); \
  }                                                                                          \
  }
