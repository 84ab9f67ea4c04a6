#include "isa.h"

#include <atomic>
#include <stdexcept>
#include <utility>

namespace gatedops::cpu {
namespace {

using Flags = std::vector<std::pair<const char*, bool>>;

// __builtin_cpu_supports asks CPUID and, for vector registers, XGETBV whether the system saves them.
Flags probe() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return {
      {"popcnt", __builtin_cpu_supports("popcnt")},
      {"avx2", __builtin_cpu_supports("avx2")},
      {"avx512f", __builtin_cpu_supports("avx512f")},
      {"avx512bw", __builtin_cpu_supports("avx512bw")},
      {"avx512dq", __builtin_cpu_supports("avx512dq")},
      {"avx512vl", __builtin_cpu_supports("avx512vl")},
      {"avx512vpopcntdq", __builtin_cpu_supports("avx512vpopcntdq")},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni")},
  };
#else
  return {};
#endif
}

bool all_found(const Flags& flags, const std::string& prefix) {
  bool any = false;
  for (const auto& [flag, found] : flags) {
    if (std::string(flag).compare(0, prefix.size(), prefix) == 0) {
      any = true;
      if (!found) {
        return false;
      }
    }
  }
  return any;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{available_isas().back()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::serial:
      break;
  }
  return "serial";
}

std::vector<Isa> available_isas() {
  const Flags flags = probe();
  std::vector<Isa> isas{Isa::serial};
  if (all_found(flags, "popcnt") && all_found(flags, "avx2")) {
    isas.push_back(Isa::avx2);
    if (all_found(flags, "avx512")) {
      isas.push_back(Isa::avx512);
    }
  }
  return isas;
}

Isa active_isa() {
  return active().load(std::memory_order_relaxed);
}

void force_isa(const std::string& wanted) {
  std::string names;
  for (Isa isa : available_isas()) {
    if (wanted == name(isa)) {
      active().store(isa, std::memory_order_relaxed);
      return;
    }
    names += names.empty() ? name(isa) : std::string(", ") + name(isa);
  }
  throw std::invalid_argument("got '" + wanted + "', but this machine runs only: " + names);
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
  for (const auto& [flag, present] : probe()) {
    if (present) {
      found.emplace_back(flag);
    }
  }
  return found;
}

}  // namespace gatedops::cpu
