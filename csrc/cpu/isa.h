// The CPU instruction sets that kernels are compiled for, and which one is used.
//
// One binary for the baseline of the architecture holds every variant; the choice is made at run time.
#pragma once

#include <string>
#include <vector>

namespace gatedops::cpu {

// From slowest to fastest. avx512 stands for avx512f, bw, dq, vl, vpopcntdq and vnni together.
enum class Isa { serial, avx2, avx512 };

const char* name(Isa isa);

// Those that this CPU and its operating system run, slowest first; always holds serial.
std::vector<Isa> available_isas();

// The one kernels use now: the fastest available until force_isa says otherwise.
Isa active_isa();

// Makes kernels use the instruction set of this name; std::invalid_argument where it is not available.
void force_isa(const std::string& wanted);

// Names of the CPU flags found among those that decide which instruction sets are available.
std::vector<std::string> cpu_features();

}  // namespace gatedops::cpu
