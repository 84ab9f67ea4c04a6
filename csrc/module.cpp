// gatedops._C: what is not a tensor op. Importing it also registers the ops of csrc/ops.cpp.

// The pybind11 in torch before 2.13 refuses TORCH_TARGET_VERSION, since pybind11 does not belong to torch's stable ABI.
// It does not need torch either, so the macro is undefined while the two headers are read.
#pragma push_macro("TORCH_TARGET_VERSION")
#undef TORCH_TARGET_VERSION
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#pragma pop_macro("TORCH_TARGET_VERSION")

#include "conv_gram/program.h"
#include "core/cpu/isa.h"
#include "gram/cpu/kernels.h"

namespace py = pybind11;
using namespace gatedops;

namespace {

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (cpu::Isa isa : cpu::available_isas()) {
    names.emplace_back(cpu::name(isa));
  }
  return names;
}

// The same source and compiler give the same report: no dates, no paths.
py::dict build_report() {
  constexpr unsigned long long torch_target = TORCH_TARGET_VERSION;  // one byte each: major, minor, ...
  py::dict report;
#if defined(__clang__)
  report["compiler"] = std::string("Clang ") + __clang_version__;
#else
  report["compiler"] = std::string("GCC ") + __VERSION__;
#endif
#if defined(__x86_64__)
  report["architecture"] = "x86-64";
#elif defined(__aarch64__)
  report["architecture"] = "arm64";
#else
  report["architecture"] = "other";
#endif
  report["c++"] = std::to_string(__cplusplus / 100 % 100);
  report["torch_target"] = std::to_string(torch_target >> 56) + "." + std::to_string(torch_target >> 48 & 0xff);
  return report;
}

void require_conv_program(
    const std::vector<int64_t>& program, const std::vector<double>& scalars, int64_t columns, int64_t words) {
  decode_program(program, scalars, columns, words);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("cpu_features", &cpu::cpu_features, "CPU flags found among those that decide the instruction set.");
  m.def("isa_names", &cpu::isa_names, "All instruction sets of this architecture, slowest first.");
  m.def("isa_flags", &cpu::isa_flags, py::arg("name"), "The CPU flags that an instruction set needs.");
  m.def("available_isas", &available_isas, "Instruction sets this machine runs, slowest first.");
  m.def("active_isa", [] { return cpu::name(cpu::active_isa()); }, "The instruction set kernels use.");
  m.def("forced_isa", &cpu::forced_isa, "The instruction set that force_isa set; empty if it set none.");
  m.def("force_isa", &cpu::force_isa, py::arg("name"), "Makes kernels use this instruction set; empty: the fastest.");
  m.def(
      "bit_pairs_per_second", &cpu::bit_pairs_per_second, py::arg("isa"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>(),
      "Bit-pairs per second that the inner operations of an instruction set count on this many threads, measured.");
  m.def(
      "require_conv_program", &require_conv_program, py::arg("program"), py::arg("scalars"), py::arg("columns"),
      py::arg("words"), "Raises ValueError unless this is a program of conv_gram for such rows of x and words.");
  m.def("build_report", &build_report, "Compiler, C++ standard and torch version this module is built for.");
}
