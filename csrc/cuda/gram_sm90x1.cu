// The wgmma kernel in blocks on their own.
#include "gram_sm90_launch-inl.h"

namespace gatedops::cuda {

GATEDOPS_CLUSTER_LAUNCHERS(1)

}  // namespace gatedops::cuda
