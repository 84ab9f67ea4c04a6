// Lists the CPU instruction sets that kernels are compiled for, and says which one is used.
//
// One binary for the baseline of the architecture holds every variant; the choice is made at run time.
#pragma once

#include <string>
#include <vector>

namespace gatedops::cpu {

// AMX needs an assembler that knows its instructions, and an operating system that can be asked for its registers.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define GATEDOPS_AMX
#endif

// The only list of instruction sets, slowest first. Each entry has a name, the set that it builds on, and the CPU flags
// that it needs beside the flags of that set. A family that has no kernels for a set runs those of the set below it.
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

// Returns the set below this one, and serial for serial.
Isa builds_on(Isa isa);

// Returns the names of all sets, slowest first, whether or not this machine has them.
std::vector<std::string> isa_names();

// Returns the CPU flags that a set needs, after the flags of the sets that it builds on. Throws std::invalid_argument
// for an unknown name.
std::vector<std::string> isa_flags(const std::string& wanted);

// Returns the sets whose flags this CPU and its operating system have, slowest first. serial is always among them.
std::vector<Isa> available_isas();

// Returns the set that kernels use now: the forced one, else the fastest available.
Isa active_isa();

// Returns the name of the forced set. It is empty if none is forced: a kernel may then use a lower set that is faster
// for its shape.
std::string forced_isa();

// Returns the instruction set of this name. Throws std::invalid_argument if this machine does not have the set.
Isa available_isa(const std::string& wanted);

// Makes kernels use the instruction set of this name. An empty name ends that. Throws std::invalid_argument if this
// machine does not have the set.
void force_isa(const std::string& wanted);

// Returns the CPU flags that this machine has, among those that the sets of this architecture need.
std::vector<std::string> cpu_features();

}  // namespace gatedops::cpu
