// Builds the wgmma kernel in clusters of two blocks.
#include "sm90_launch-inl.h"

namespace gatedops::cuda {

GATEDOPS_CLUSTER_LAUNCHERS(2)

}  // namespace gatedops::cuda
