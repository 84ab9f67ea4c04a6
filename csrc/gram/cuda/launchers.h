// The launchers that run.h and ops.cpp call; the .cu files define them. Pointers in a problem are device pointers. A
// launch is queued on `stream` (a cudaStream_t) of the current device. A launcher returns a cudaError_t.
#pragma once

#include "matvec_bands.h"

namespace gatedops::cuda {

// kInt32 is for counts, one plane for each layer.
enum class OutputType { kFloat32, kFloat64, kBFloat16, kInt32 };

// The launchers of one kernel of the Gram. They fill in the problem's schedule, because only they know their tiles.
struct GramLaunchers {
  // This tells whether the kernel makes a Sigma of floats.
  bool sigma_of_floats;

  int (*gram)(const GramProblem& problem, bool symmetric, OutputType type, void* stream);

  // Writes the largest values of each row to the place that problem.neighbors gives; float32 or float64.
  int (*neighbors)(const GramProblem& problem, OutputType type, void* stream);

  // Computes the Gram times v, float32 or float64. The workspace for partial products has as many bytes as
  // matvec_workspace says.
  int64_t (*matvec_workspace)(const MatvecCall& call, OutputType type);
  int (*matvec)(const MatvecCall& call, OutputType type, void* workspace, void* stream);
};

// kSm80 is mma.sync and runs on any GPU from sm_80 on; from sm_100 on its bit products are emulated and slow. kSm90 is
// wgmma in clusters of two blocks, kSm90x1 is wgmma without clusters. Both run on sm_90a, and not for float64.
extern const GramLaunchers kSm80, kSm90, kSm90x1;

// Returns the launchers of the kernel that makes a result of this type on the current device (choice.cpp).
const GramLaunchers& launchers_for(const GramProblem& problem, OutputType type);

// Notes which kernel is launched, by its name in GATEDOPS_CUDA. gatedops_last_gram_kernel() returns it to Python
// (gatedops/backends/cuda_library.py), so that a test of a kernel can tell that this kernel ran.
void note_kernel(const char* name);

// Adds up the parts of a band of a Gram times v. Tiles have kTile rows.
template <class Value, int kTile>
int launch_sums(const PartialSums& sums, void* stream);

// A matrix of floats, which launch_split writes as two matrices (rows, padded) of TF32 numbers (arithmetic.h).
struct FloatRows {
  const float* data;
  int64_t rows, columns, row_stride, column_stride;  // Strides count elements.
};
int launch_split(const FloatRows& x, float* high, float* rest, int64_t padded, void* stream);

// Counts the gates that are on in each layer and row, (L, n). Uses x_first and words of the table.
int launch_row_counts(const GateRows& gates, const LayerTable& layers, int32_t* counts, void* stream);

// Computes prod_l count_l * scale_l for each row, float32 or float64.
int launch_diagonal(const GateRows& gates, const LayerTable& layers, OutputType type, void* out, void* stream);

}  // namespace gatedops::cuda
