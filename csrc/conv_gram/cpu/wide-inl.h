// One number for each of kPairs pairs, in registers of an instruction set; included by body-inl.h.
#pragma once

namespace gatedops::cpu {
namespace {

// kPairs numbers, in as many registers as they take.
template <class I, class T>
struct Wide {
  typedef T Vec __attribute__((vector_size(I::kBytes)));
  static constexpr int kLanes = I::kBytes / static_cast<int>(sizeof(T));
  static constexpr int kVecs = kPairs / kLanes;
  Vec v[kVecs];

  GATEDOPS_INLINE static Wide load(const T* p) {
    Wide w;
    for (int i = 0; i < kVecs; ++i) {
      std::memcpy(&w.v[i], p + i * kLanes, sizeof(Vec));
    }
    return w;
  }
  GATEDOPS_INLINE static Wide zero() {
    Wide w;
    for (int i = 0; i < kVecs; ++i) {
      w.v[i] = Vec{};
    }
    return w;
  }
  GATEDOPS_INLINE void store(T* p) const {
    for (int i = 0; i < kVecs; ++i) {
      std::memcpy(p + i * kLanes, &v[i], sizeof(Vec));
    }
  }
  GATEDOPS_INLINE void add(const Wide& b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] += b.v[i];
    }
  }
  GATEDOPS_INLINE void add(T b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] += b;
    }
  }
  GATEDOPS_INLINE void multiply(const Wide& b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] *= b.v[i];
    }
  }
  GATEDOPS_INLINE void multiply(T b) {
    for (int i = 0; i < kVecs; ++i) {
      v[i] *= b;
    }
  }
};

// Overlaps of the masks at one position. kWords: of a mask; -1: as many as `words` says.
template <class I, class T, int kWords>
GATEDOPS_INLINE Wide<I, T> overlap(const uint32_t* x, const uint32_t* y, int words) {
  Wide<I, T> w;
  I::convert(I::template overlap<kWords>(x, y, words), w);
  return w;
}

}  // namespace
}  // namespace gatedops::cpu
