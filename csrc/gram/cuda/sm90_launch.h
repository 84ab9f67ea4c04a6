// Launchers of the wgmma kernel, each defined for clusters of kCluster blocks in a .cu file of its own: sm90.cu
// (2) and sm90x1.cu (1). What they take and return is said in launch.h.
#pragma once

#include "launch.h"

namespace gatedops::cuda {

template <int kCluster>
int launch_gram_clusters(const GramProblem& problem, bool symmetric, OutputType type, void* stream);
template <int kCluster>
int launch_neighbors_clusters(const GramProblem& problem, void* stream);
template <int kCluster>
int64_t matvec_workspace_clusters(const MatvecCall& call);
template <int kCluster>
int launch_matvec_clusters(const MatvecCall& call, void* workspace, void* stream);

#define GATEDOPS_CLUSTER_LAUNCHERS(kCluster)                                                \
  template int launch_gram_clusters<kCluster>(const GramProblem&, bool, OutputType, void*); \
  template int launch_neighbors_clusters<kCluster>(const GramProblem&, void*);              \
  template int64_t matvec_workspace_clusters<kCluster>(const MatvecCall&);                  \
  template int launch_matvec_clusters<kCluster>(const MatvecCall&, void*, void*);

}  // namespace gatedops::cuda
