// The CPU instruction sets that kernels are compiled for, and which one is used.
//
// One binary for the baseline of the architecture holds every variant; the choice is made at run time.
#pragma once

#include <string>
#include <vector>

namespace gatedops::cpu {

// AMX: where the assembler knows its instructions and the operating system can be asked for its registers.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define GATEDOPS_AMX
#endif

// The one list of them, slowest first: name, the set that it builds on, and the CPU flags that it needs beside those of
// that set. A family that has no kernels of a set runs those of the set that it builds on.
#if defined(__aarch64__)
#define GATEDOPS_INSTRUCTION_SETS(SET) \
  SET(serial, serial, "")              \
  SET(neon, serial, "neon")
#else
#define GATEDOPS_INSTRUCTION_SETS(SET)                                               \
  SET(serial, serial, "")                                                            \
  SET(avx2, serial, "popcnt avx2")                                                   \
  SET(avx512, avx2, "avx512f avx512bw avx512dq avx512vl avx512vpopcntdq avx512vnni") \
  SET(amx, avx512, "amx-tile amx-int8")
#endif

#define GATEDOPS_ENUMERATOR(name, base, flags) name,
enum class Isa { GATEDOPS_INSTRUCTION_SETS(GATEDOPS_ENUMERATOR) };
#undef GATEDOPS_ENUMERATOR

#define GATEDOPS_ONE(name, base, flags) +1
constexpr int kIsas = GATEDOPS_INSTRUCTION_SETS(GATEDOPS_ONE);
#undef GATEDOPS_ONE

const char* name(Isa isa);

// serial for serial.
Isa builds_on(Isa isa);

// The names of all sets, slowest first, available here or not.
std::vector<std::string> isa_names();

// The CPU flags that a set needs, those of the sets that it builds on first. std::invalid_argument for an unknown name.
std::vector<std::string> isa_flags(const std::string& wanted);

// Those whose flags this CPU and its operating system have, slowest first; always holds serial.
std::vector<Isa> available_isas();

// The one kernels use now: the forced one, else the fastest available.
Isa active_isa();

// The name of the forced one. Empty when none is forced: a kernel may then use a lower set that is faster for its
// shape.
std::string forced_isa();

// Makes kernels use the instruction set of this name, or none in particular when it is empty. std::invalid_argument
// where it is not available.
void force_isa(const std::string& wanted);

// The CPU flags found, among those that the sets of this architecture need.
std::vector<std::string> cpu_features();

}  // namespace gatedops::cpu
