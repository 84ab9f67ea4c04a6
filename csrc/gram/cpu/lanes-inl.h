// Traits for tile-inl.h in vectors of four lanes. The compiler turns them into what the baseline of the architecture
// has: SSE2 on x86-64, NEON on Arm. Include this file after tile-inl.h. An instruction set I adds kRows, kVecs, and
// step and fold, which count in bytes.
namespace gatedops::cpu {
namespace {

template <class I>
struct FourLanes : WholeWords<I> {
  static constexpr int kLanes = 4;
  static constexpr int kMaxSteps = 31;  // a counter of one byte holds 31 * 8 <= 255
  using Vec = uint32_t __attribute__((vector_size(16)));
  using Row = Vec;
  using Column = Vec;

  static Vec zero() {
    return Vec{};
  }
  static Vec load(const void* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static Vec load_first(const uint32_t* p, int words) {
    Vec v{};
    std::memcpy(&v, p, static_cast<size_t>(words) * sizeof(uint32_t));
    return v;
  }
  static void store(void* p, Vec v) {
    std::memcpy(p, &v, sizeof v);
  }
  static void stream(void* p, Vec v) {
    store(p, v);
  }
  static Vec broadcast(const uint32_t* p) {
    return Vec{} + *p;
  }
  static Vec add(Vec a, Vec b) {
    return a + b;
  }
  static void transpose(Vec (&square)[kLanes]) {
    Vec turned[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      for (int j = 0; j < kLanes; ++j) {
        turned[i][j] = square[j][i];
      }
    }
    std::memcpy(square, turned, sizeof turned);
  }
  template <class T>
  static void factor(T* out, Vec counts, T scale) {
    for (int i = 0; i < kLanes; ++i) {
      out[i] = static_cast<T>(static_cast<int32_t>(counts[i])) * scale;
    }
  }
  template <class T>
  static void multiply(T* product, Vec counts, T scale) {
    T by[kLanes];
    factor(by, counts, scale);
    for (int i = 0; i < kLanes; ++i) {
      product[i] *= by[i];
    }
  }
  typedef double Wide __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  template <class T>
  static Wide load_wide(const T* p) {
    Wide v{};
    for (int i = 0; i < kLanes / 2; ++i) {
      v[i] = p[i];
    }
    return v;
  }
  static Wide broadcast_wide(const double* p) {
    return Wide{} + *p;
  }
  static void store_wide(double* p, Wide v) {
    std::memcpy(p, &v, sizeof v);
  }
  static Wide add_exact_product(Wide sum, Wide a, Wide b) {
    return sum + a * b;
  }
  template <class T>
  static uint32_t above(const T* values, const T* limits) {
    return bits_of(values, [limits](int i) { return limits[i]; });
  }
  template <class T>
  static uint32_t above(const T* values, T limit) {
    return bits_of(values, [limit](int) { return limit; });
  }

 private:
  template <class T, class Limit>
  static uint32_t bits_of(const T* values, const Limit& limit) {
    uint32_t bits = 0;
    for (int i = 0; i < static_cast<int>(sizeof(Vec) / sizeof(T)); ++i) {
      bits |= static_cast<uint32_t>(!(values[i] < limit(i))) << i;
    }
    return bits;
  }
};

}  // namespace
}  // namespace gatedops::cpu
