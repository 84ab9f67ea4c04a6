// Chooses the kernel of the Gram for this GPU. If GATEDOPS_BACKEND is cuda, GATEDOPS_CUDA forces the choice:
//   sm80     takes mma.sync on every GPU;
//   sm90     takes wgmma in clusters of two blocks if the GPU has it, as the choice without GATEDOPS_CUDA does;
//   sm90x1   takes wgmma without clusters if the GPU has it.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "launchers.h"

namespace gatedops::cuda {
namespace {

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Returns the forced kernel. The name is empty unless kernels that proved nothing may run.
std::string_view forced() {
  return variable("GATEDOPS_BACKEND") == "cuda" ? variable("GATEDOPS_CUDA") : "";
}

bool is_sm90() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

std::atomic<const char*> last_kernel{nullptr};

}  // namespace

void note_kernel(const char* name) {
  last_kernel = name;
}

const GramLaunchers& launchers_for(const GramProblem& p, OutputType type) {
  const std::string_view name = forced();
  const bool mapped = p.x.rows <= kMaxMappedRows && p.y.rows <= kMaxMappedRows && p.layers.count <= kMaxMappedLayers;
  if (!mapped || type == OutputType::kFloat64 || name == "sm80" || !is_sm90()) {
    return kSm80;
  }
  return name == "sm90x1" ? kSm90x1 : kSm90;
}

}  // namespace gatedops::cuda

// Returns null before the first launch.
extern "C" __attribute__((visibility("default"))) const char* gatedops_last_gram_kernel() {
  return gatedops::cuda::last_kernel;
}
