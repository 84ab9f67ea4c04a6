// What run.h and ops.cpp call: launchers, defined in the .cu files. Pointers in a problem are device pointers; a launch
// is queued on `stream` (a cudaStream_t) of the current device. A launcher returns a cudaError_t.
#pragma once

#include "matvec_bands.h"

namespace gatedops::cuda {

enum class OutputType { kFloat32, kFloat64, kBFloat16, kInt32 };  // kInt32: counts, one plane per layer

// The launchers of one kernel of the Gram. The problem's schedule is left to them, who know their tiles.
struct GramLaunchers {
  bool sigma_of_floats;  // whether the kernel makes it

  int (*gram)(const GramProblem& problem, bool symmetric, OutputType type, void* stream);

  // The largest values of each row, where problem.neighbors says; float32 or float64.
  int (*neighbors)(const GramProblem& problem, OutputType type, void* stream);

  // The Gram times v, float32 or float64, with partial products in a workspace of so many bytes.
  int64_t (*matvec_workspace)(const MatvecCall& call, OutputType type);
  int (*matvec)(const MatvecCall& call, OutputType type, void* workspace, void* stream);
};

// mma.sync, on any GPU from sm_80 on; from sm_100 on its bit products are emulated and slow. wgmma on sm_90a, in
// clusters of two blocks and without clusters: not for float64.
extern const GramLaunchers kSm80, kSm90, kSm90x1;

// Those of the kernel that makes a result of this type on the current device (choice.cpp).
const GramLaunchers& launchers_for(const GramProblem& problem, OutputType type);

// Notes which kernel is launched, as GATEDOPS_CUDA calls it; gatedops_last_gram_kernel() gives it to Python
// (gatedops/backends/cuda_library.py), so that a test of a kernel can tell that this kernel ran.
void note_kernel(const char* name);

// Adds up the parts of a band of a Gram times v, of tiles of kTile rows.
template <class Value, int kTile>
int launch_sums(const PartialSums& sums, void* stream);

// x as two matrices (rows, padded) of TF32 numbers (arithmetic.h).
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
