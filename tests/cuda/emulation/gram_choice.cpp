// csrc/gram/cuda/choice.cpp with a GPU that a test describes, and launchers that only say which one was called.
#include "gram/cuda/choice.cpp"

namespace {

int compute_major = 0;
const char* launched = "";

template <int kCluster>
int launched_in_clusters() {
  launched = kCluster == 1 ? "sm90x1" : "sm90";
  return 0;
}

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? compute_major : -1;
  return cudaSuccess;
}

namespace gatedops::cuda {

template <int kCluster>
int launch_gram_clusters(const GramProblem&, bool, OutputType, void*) {
  return launched_in_clusters<kCluster>();
}
template <int kCluster>
int launch_neighbors_clusters(const GramProblem&, void*) {
  return launched_in_clusters<kCluster>();
}
template <int kCluster>
int64_t matvec_workspace_clusters(const MatvecCall&) {
  return launched_in_clusters<kCluster>();
}
template <int kCluster>
int launch_matvec_clusters(const MatvecCall&, void*, void*) {
  return launched_in_clusters<kCluster>();
}

GATEDOPS_CLUSTER_LAUNCHERS(1)
GATEDOPS_CLUSTER_LAUNCHERS(2)

}  // namespace gatedops::cuda

using gatedops::cuda::GramProblem;
using gatedops::cuda::OutputType;

// The launcher that `op` calls (0 gram, 1 neighbours, 2 workspace of a matvec, 3 matvec); "sm80" where the wgmma kernel
// does not take the problem.
extern "C" const char* chosen(int major, int64_t rows, int layers, int type, int op) {
  compute_major = major;
  GramProblem p{};
  p.x.rows = p.y.rows = rows;
  p.layers.count = layers;
  if (!gatedops::cuda::sm90_takes(p, static_cast<OutputType>(type))) {
    return "sm80";
  }
  const gatedops::cuda::MatvecCall call{p, true, nullptr, 0};
  switch (op) {
    case 0:
      gatedops::cuda::launch_gram_sm90(p, true, static_cast<OutputType>(type), nullptr);
      break;
    case 1:
      gatedops::cuda::launch_neighbors_sm90(p, nullptr);
      break;
    case 2:
      gatedops::cuda::matvec_workspace_sm90(call);
      break;
    default:
      gatedops::cuda::launch_matvec_sm90(call, nullptr, nullptr);
  }
  return launched;
}
