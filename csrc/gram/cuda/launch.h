// What csrc/gram/cuda/ops.cpp calls: one launcher per kernel, defined in the .cu files. Pointers in the problem are
// device pointers; a launch is queued on `stream` (a cudaStream_t) of the current device. A launcher returns a
// cudaError_t.
#pragma once

#include "matvec_bands.h"

namespace gatedops::cuda {

enum class OutputType { kFloat32, kFloat64, kBFloat16, kInt32 };  // kInt32: counts, one plane per layer

// Notes which kernel is launched, as GATEDOPS_CUDA calls it; gatedops_last_gram_kernel() gives it to Python
// (gatedops/backends/cuda_library.py), so that a test of a kernel can tell that this kernel ran.
void note_kernel(const char* name);

// schedule is left to the launcher, which knows its tiles. Any GPU from sm_80 on, but from sm_100 on its bit
// products are emulated and slow.
int launch_gram_sm80(GramProblem problem, bool symmetric, OutputType type, void* stream);

// The same on sm_90a, for what sm90_takes: not float64, and not where GATEDOPS_CUDA=sm80 asks for the other kernel
// (choice.cpp).
bool sm90_takes(const GramProblem& problem, OutputType type);
int launch_gram_sm90(const GramProblem& problem, bool symmetric, OutputType type, void* stream);

// The Gram times v, float32 or float64 (mma.sync alone), with partial products in a workspace of so many bytes.
int64_t matvec_workspace_sm80(const MatvecCall& call, OutputType type);
int64_t matvec_workspace_sm90(const MatvecCall& call);
int launch_matvec_sm80(const MatvecCall& call, OutputType type, void* workspace, void* stream);
int launch_matvec_sm90(const MatvecCall& call, void* workspace, void* stream);

// The largest values of each row, where problem.neighbors says; float32 or float64 (mma.sync alone).
int launch_neighbors_sm80(GramProblem problem, OutputType type, void* stream);
int launch_neighbors_sm90(const GramProblem& problem, void* stream);

// x as two matrices (rows, padded) of TF32 numbers (split_floats.h).
struct FloatRows {
  const float* data;
  int64_t rows, columns, row_stride, column_stride;  // strides in elements
};
int launch_split(const FloatRows& x, float* high, float* rest, int64_t padded, void* stream);

// Gates on in each row and layer, (L, n), from x_first and words of the table.
int launch_row_counts(const GateRows& gates, const LayerTable& layers, int32_t* counts, void* stream);

// prod_l count_l * scale_l of each row, float32 or float64.
int launch_diagonal(const GateRows& gates, const LayerTable& layers, OutputType type, void* out, void* stream);

}  // namespace gatedops::cuda
