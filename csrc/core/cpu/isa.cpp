#include "isa.h"

#include <atomic>
#include <stdexcept>
#include <utility>

#if defined(GATEDOPS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gatedops::cpu {
namespace {

using Flags = std::vector<std::pair<const char*, bool>>;

// Whether this CPU has the feature of CPUID leaf 7 in this bit of EDX, and the operating system, which has to be asked
// once for the whole process, lets its tile registers be used.
bool has_amx(unsigned bit) {
#if defined(GATEDOPS_AMX)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl, XSAVE state component
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx >> bit & 1u) == 0) {
    return false;
  }
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  (void)bit;
  return false;
#endif
}

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
      {"amx-tile", has_amx(24)},
      {"amx-int8", has_amx(25)},
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

constexpr int kAutomatic = -1;
std::atomic<int> forced{kAutomatic};

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
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
      if (all_found(flags, "amx")) {
        isas.push_back(Isa::amx);
      }
    }
  }
  return isas;
}

Isa active_isa() {
  static const Isa fastest = available_isas().back();
  const int wanted = forced.load(std::memory_order_relaxed);
  return wanted == kAutomatic ? fastest : static_cast<Isa>(wanted);
}

std::string forced_isa() {
  const int wanted = forced.load(std::memory_order_relaxed);
  return wanted == kAutomatic ? "" : name(static_cast<Isa>(wanted));
}

void force_isa(const std::string& wanted) {
  if (wanted.empty()) {
    forced.store(kAutomatic, std::memory_order_relaxed);
    return;
  }
  std::string names;
  for (Isa isa : available_isas()) {
    if (wanted == name(isa)) {
      forced.store(static_cast<int>(isa), std::memory_order_relaxed);
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
