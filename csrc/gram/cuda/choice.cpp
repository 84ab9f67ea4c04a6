// Which kernel of the gram family runs on this GPU, and with which clusters. Beside GATEDOPS_BACKEND=cuda,
// GATEDOPS_CUDA forces the choice:
//   sm80     mma.sync everywhere;
//   sm90     wgmma in clusters of two blocks, where the GPU has it (what is chosen by itself);
//   sm90x1   wgmma without clusters.
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "sm90_launch.h"

namespace gatedops::cuda {
namespace {

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// Nothing, unless kernels that proved nothing may run.
std::string_view forced() {
  return variable("GATEDOPS_BACKEND") == "cuda" ? variable("GATEDOPS_CUDA") : "";
}

bool is_sm90() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

bool without_clusters() {
  return forced() == "sm90x1";
}

std::atomic<const char*> last_kernel{nullptr};

}  // namespace

void note_kernel(const char* name) {
  last_kernel = name;
}

bool sm90_takes(const GramProblem& p, OutputType type) {
  const bool counted = p.x.rows <= kMaxMappedRows && p.y.rows <= kMaxMappedRows;
  return counted && type != OutputType::kFloat64 && p.layers.count <= kMaxMappedLayers && forced() != "sm80" &&
         is_sm90();
}

int launch_gram_sm90(const GramProblem& problem, bool symmetric, OutputType type, void* stream) {
  return without_clusters() ? launch_gram_clusters<1>(problem, symmetric, type, stream)
                            : launch_gram_clusters<2>(problem, symmetric, type, stream);
}

int launch_neighbors_sm90(const GramProblem& problem, void* stream) {
  return without_clusters() ? launch_neighbors_clusters<1>(problem, stream)
                            : launch_neighbors_clusters<2>(problem, stream);
}

int64_t matvec_workspace_sm90(const MatvecCall& call) {
  return without_clusters() ? matvec_workspace_clusters<1>(call) : matvec_workspace_clusters<2>(call);
}

int launch_matvec_sm90(const MatvecCall& call, void* workspace, void* stream) {
  return without_clusters() ? launch_matvec_clusters<1>(call, workspace, stream)
                            : launch_matvec_clusters<2>(call, workspace, stream);
}

}  // namespace gatedops::cuda

// Returns null before the first launch.
extern "C" __attribute__((visibility("default"))) const char* gatedops_last_gram_kernel() {
  return gatedops::cuda::last_kernel;
}
