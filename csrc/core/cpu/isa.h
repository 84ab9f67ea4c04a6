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

// From slowest to fastest. avx512 stands for avx512f, bw, dq, vl, vpopcntdq and vnni together, amx for these and
// amx-tile and amx-int8; kernels that have no use for its tiles are those of avx512 there.
enum class Isa { serial, avx2, avx512, amx };

const char* name(Isa isa);

// Those that this CPU and its operating system run, slowest first; always holds serial.
std::vector<Isa> available_isas();

// The one kernels use now: the forced one, else the fastest available.
Isa active_isa();

// The name of the forced one; empty where none is, and kernels are free to use a slower one where it is the faster.
std::string forced_isa();

// Makes kernels use the instruction set of this name, none in particular where it is empty; std::invalid_argument where
// it is not available.
void force_isa(const std::string& wanted);

// Names of the CPU flags found among those that decide which instruction sets are available.
std::vector<std::string> cpu_features();

}  // namespace gatedops::cpu
