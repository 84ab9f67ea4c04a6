// The convolutional recursion in the compiler's vectors of four lanes, for which it uses the baseline instruction set
// (SSE2 on x86-64, NEON on Arm). Bits are counted by shift and mask.
#include <algorithm>
#include <cstring>

#include "kernels.h"

#include "body-inl.h"
#include "box-inl.h"
#include "masked_box-inl.h"

namespace gatedops::cpu {
namespace {

struct ConvSerial {
  static constexpr int kBytes = 16;
  static constexpr int kLanes = 4, kVecs = kPairs / kLanes;
  typedef uint32_t Vec __attribute__((vector_size(kBytes)));
  struct Counts {
    Vec v[kVecs];
  };

  template <int kWords>
  GATEDOPS_INLINE static Counts overlap(const uint32_t* x, const uint32_t* y, int words) {
    Counts sum{};
    for (int w = 0; w < (kWords > 0 ? kWords : words); ++w) {
      for (int i = 0; i < kVecs; ++i) {
        Vec lane;
        std::memcpy(&lane, y + w * kPairs + i * kLanes, sizeof lane);
        sum.v[i] += count(lane & x[w]);
      }
    }
    return sum;
  }

  GATEDOPS_INLINE static Vec count(Vec v) {
    v -= (v >> 1) & 0x55555555u;
    v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0fu;
    v += v >> 8;
    return (v + (v >> 16)) & 0x3fu;
  }

  template <class T>
  GATEDOPS_INLINE static void convert(const Counts& c, Wide<ConvSerial, T>& to) {
    constexpr int kPart = Wide<ConvSerial, T>::kLanes;
    for (int i = 0; i < kPairs; ++i) {
      to.v[i / kPart][i % kPart] = static_cast<T>(static_cast<int32_t>(c.v[i / kLanes][i % kLanes]));
    }
  }
};

constexpr ConvKernels kConvSerial{ConvGram<ConvSerial, float>::kernels(), ConvGram<ConvSerial, double>::kernels()};

}  // namespace
}  // namespace gatedops::cpu

GATEDOPS_KERNELS_OF(serial, kConvSerial)
