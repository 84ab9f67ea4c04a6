#include "isa.h"

#include <algorithm>
#include <atomic>
#include <sstream>
#include <stdexcept>

#if defined(GATEDOPS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gatedops::cpu {
namespace {

using Names = std::vector<std::string>;

struct InstructionSet {
  Isa isa;
  const char* name;
  Isa builds_on;
  // Spaces separate the flags.
  const char* flags;
};

#define GATEDOPS_ROW(name, base, flags) {Isa::name, #name, Isa::base, flags},
constexpr InstructionSet kSets[] = {GATEDOPS_INSTRUCTION_SETS(GATEDOPS_ROW)};
#undef GATEDOPS_ROW

const InstructionSet& row(Isa isa) {
  return kSets[static_cast<int>(isa)];
}

#if defined(__x86_64__)
// Tells whether this CPU has the feature in bit `bit` of EDX of CPUID leaf 7, and whether the operating system permits
// the use of its tile registers. The operating system is asked once for the whole process.
bool has_amx(unsigned bit) {
#if defined(GATEDOPS_AMX)
  // The code of the arch_prctl call, and the number of the XSAVE state component.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
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
#endif

// Tells whether this machine has a flag of the list; false for a flag that this function does not know.
// __builtin_cpu_supports asks CPUID and, for vector registers, XGETBV whether the system saves them. It takes literals
// only, hence the macro.
bool has(const std::string& flag) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#define GATEDOPS_FLAG(name)                   \
  if (flag == name) {                         \
    return __builtin_cpu_supports(name) != 0; \
  }
  GATEDOPS_FLAG("popcnt")
  GATEDOPS_FLAG("avx2")
  GATEDOPS_FLAG("avx512f")
  GATEDOPS_FLAG("avx512bw")
  GATEDOPS_FLAG("avx512dq")
  GATEDOPS_FLAG("avx512vl")
  GATEDOPS_FLAG("avx512vpopcntdq")
  GATEDOPS_FLAG("avx512vnni")
#undef GATEDOPS_FLAG
  return (flag == "amx-tile" && has_amx(24)) || (flag == "amx-int8" && has_amx(25));
#elif defined(__aarch64__)
  // Every 64-bit Arm has NEON.
  return flag == "neon";
#else
  (void)flag;
  return false;
#endif
}

Names flags_of(Isa isa) {
  Names flags = isa == Isa::serial ? Names{} : flags_of(row(isa).builds_on);
  std::istringstream own(row(isa).flags);
  for (std::string flag; own >> flag;) {
    flags.push_back(flag);
  }
  return flags;
}

constexpr int kAutomatic = -1;
std::atomic<int> forced{kAutomatic};

}  // namespace

const char* name(Isa isa) {
  return row(isa).name;
}

Isa builds_on(Isa isa) {
  return row(isa).builds_on;
}

Names isa_names() {
  Names names;
  for (const InstructionSet& set : kSets) {
    names.emplace_back(set.name);
  }
  return names;
}

Names isa_flags(const std::string& wanted) {
  for (const InstructionSet& set : kSets) {
    if (wanted == set.name) {
      return flags_of(set.isa);
    }
  }
  throw std::invalid_argument("got '" + wanted + "', which is not an instruction set of this architecture");
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const InstructionSet& set : kSets) {
    const Names flags = flags_of(set.isa);
    if (std::all_of(flags.begin(), flags.end(), has)) {
      isas.push_back(set.isa);
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

Isa available_isa(const std::string& wanted) {
  std::string names;
  for (Isa isa : available_isas()) {
    if (wanted == name(isa)) {
      return isa;
    }
    names += names.empty() ? name(isa) : std::string(", ") + name(isa);
  }
  throw std::invalid_argument("got '" + wanted + "', but this machine runs only: " + names);
}

void force_isa(const std::string& wanted) {
  forced.store(wanted.empty() ? kAutomatic : static_cast<int>(available_isa(wanted)), std::memory_order_relaxed);
}

Names cpu_features() {
  Names found;
  for (const InstructionSet& set : kSets) {
    for (const std::string& flag : flags_of(set.isa)) {
      if (has(flag) && std::find(found.begin(), found.end(), flag) == found.end()) {
        found.push_back(flag);
      }
    }
  }
  return found;
}

}  // namespace gatedops::cpu
