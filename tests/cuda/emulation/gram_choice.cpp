// Runs csrc/gram/cuda/choice.cpp with a GPU that a test describes, and with launchers that only say which was called.
#include "gram/cuda/choice.cpp"

namespace {

using gatedops::cuda::GramLaunchers;
using gatedops::cuda::GramProblem;
using gatedops::cuda::MatvecCall;
using gatedops::cuda::OutputType;

int compute_major = 0;
const char* launched = "";

struct Sm80 {
  static constexpr const char* kName = "sm80";
};
struct Sm90 {
  static constexpr const char* kName = "sm90";
};
struct Sm90x1 {
  static constexpr const char* kName = "sm90x1";
};

template <class Kernel>
int launch() {
  launched = Kernel::kName;
  return 0;
}

template <class Kernel>
constexpr GramLaunchers kNoting{
    true, [](const GramProblem&, bool, OutputType, void*) { return launch<Kernel>(); },
    [](const GramProblem&, OutputType, void*) { return launch<Kernel>(); },
    [](const MatvecCall&, OutputType) -> int64_t { return launch<Kernel>(); },
    [](const MatvecCall&, OutputType, void*, void*) { return launch<Kernel>(); }};

}  // namespace

const GramLaunchers gatedops::cuda::kSm80 = kNoting<Sm80>, gatedops::cuda::kSm90 = kNoting<Sm90>,
                    gatedops::cuda::kSm90x1 = kNoting<Sm90x1>;

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? compute_major : -1;
  return cudaSuccess;
}

// Returns which launcher `op` calls: 0 is gram, 1 neighbours, 2 the workspace of a matvec, 3 matvec.
extern "C" const char* chosen(int major, int64_t rows, int layers, int of_type, int op) {
  compute_major = major;
  GramProblem p{};
  p.x.rows = p.y.rows = rows;
  p.layers.count = layers;
  const auto type = static_cast<OutputType>(of_type);
  const GramLaunchers& kernel = gatedops::cuda::launchers_for(p, type);
  const MatvecCall call{p, true, nullptr, 0};
  switch (op) {
    case 0:
      kernel.gram(p, true, type, nullptr);
      break;
    case 1:
      kernel.neighbors(p, type, nullptr);
      break;
    case 2:
      kernel.matvec_workspace(call, type);
      break;
    default:
      kernel.matvec(call, type, nullptr, nullptr);
  }
  return launched;
}
