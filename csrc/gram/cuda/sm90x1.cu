// Builds the wgmma kernel without clusters: each block works on its own.
#include "sm90_launch-inl.h"

namespace gatedops::cuda {

GATEDOPS_CLUSTER_LAUNCHERS(1)

}  // namespace gatedops::cuda
