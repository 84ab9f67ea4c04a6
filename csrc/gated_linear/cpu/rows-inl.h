// Row kernels of the gated layers, written once. They are plain loops without branches, which the compiler turns into
// vector code for the instruction set that the including file asks for (see gram/cpu/tile-inl.h). The compiler
// contracts nothing, so that every instruction set gives the same bits. The traits I have the steps of sixteen elements
// that loops do not express well: I::keep(from, to, gates) is a step of Rows::select, and gates = I::relu(from, to) is
// a step of Rows::relu_and_pack.
//
// A layer's time is that of torch's products. Beside them memory bounds all of these loops but the soft ones, which
// compute a sigmoid. For one float32 element, with AVX-512 instructions for sixteen elements (objdump -d):
//
// | kernel                      | bytes read | bytes written | instructions for sixteen elements          |
// |-----------------------------|------------|---------------|--------------------------------------------|
// | relu_and_pack               | 4          | 4 + 1/8       | load, VMAXPS, VCMPPS, KMOVW, store         |
// | select                      | 4 + 1/8    | 4             | KMOVW, masked load, store                  |
// | multiply                    | 8          | 4             | load, VMULPS, store                        |
// | add, with sums in the cache | 4          | 0             | two loads, VADDPS, store                   |
// | soft_pair, without h        | 8          | 4             | 35 operations and one VDIVPS on two ports  |

#if defined(__clang__)
#define GATEDOPS_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define GATEDOPS_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace gatedops::cpu {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Bits is an integer as wide as the element. Compute is the type in which sums and sigmoids are computed.
template <class E>
struct Element;
template <>
struct Element<float> {
  using Bits = uint32_t;
  using Compute = float;
};
template <>
struct Element<double> {
  using Bits = uint64_t;
  using Compute = double;
};
template <>
struct Element<BFloat16> {
  using Bits = uint16_t;
  using Compute = float;
  static constexpr int16_t kMinusInfinity = static_cast<int16_t>(0xff80);
};
template <>
struct Element<Half> {
  using Bits = uint16_t;
  using Compute = float;
  static constexpr int16_t kMinusInfinity = static_cast<int16_t>(0xfc00);
};

template <class To, class From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Constants of exp(x) = 2^n exp(r) with n = round(x / ln 2), r = x - n ln 2 and |r| <= ln(2) / 2. Adding kRounder
// rounds x / ln 2, and leaves n in the low bits of the sum. n * kLn2High is exact. Below kLeast the result is 0.
template <class C>
struct Exp;
template <>
struct Exp<float> {
  using Int = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127, kDegree = 7;
  static constexpr float kLeast = -87.0f, kRounder = 0x1.8p23f;
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
};
template <>
struct Exp<double> {
  using Int = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023, kDegree = 13;
  static constexpr double kLeast = -708.0, kRounder = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33;
};

constexpr double kInverseFactorials[] = {1.0,
                                         1.0,
                                         1.0 / 2,
                                         1.0 / 6,
                                         1.0 / 24,
                                         1.0 / 120,
                                         1.0 / 720,
                                         1.0 / 5040.0,
                                         1.0 / 40320.0,
                                         1.0 / 362880.0,
                                         1.0 / 3628800.0,
                                         1.0 / 39916800.0,
                                         1.0 / 479001600.0,
                                         1.0 / 6227020800.0};

// Returns condition ? a : b, computed on the bits. With floats GCC keeps a branch, because an operation could trap, and
// then does not vectorize the loop.
template <class C>
inline C choose(bool condition, C a, C b) {
  using Int = typename Exp<C>::Int;
  const Int mask = Int(0) - static_cast<Int>(condition);
  return as<C>(static_cast<Int>((as<Int>(a) & mask) | (as<Int>(b) & ~mask)));
}

// Returns exp(x) for x <= 0, within 2 ulp.
template <class C>
inline C exp_of_negative(C x) {
  using K = Exp<C>;
  const C rounded = x * C(1.4426950408889634074) + K::kRounder;
  const C n = rounded - K::kRounder;
  const C r = (x - n * K::kLn2High) - n * K::kLn2Low;
  C series = C(kInverseFactorials[K::kDegree]);
  for (int k = K::kDegree - 1; k >= 0; --k) {
    series = series * r + C(kInverseFactorials[k]);
  }
  const auto exponent = as<typename K::Int>(rounded) + K::kBias;
  const C power = as<C>(static_cast<typename K::Int>(exponent << K::kMantissa));
  return choose(x < K::kLeast, C(0), series * power);
}

// sigmoid(t) and its derivative. Computed as s * (1 - s), the derivative would lose digits if s is close to 1.
template <class C>
struct Sigmoid {
  C value, slope;

  explicit Sigmoid(C t) {
    const C e = exp_of_negative(-std::abs(t));
    const C d = C(1) / (C(1) + e), below = e * d;
    value = choose(t < C(0), below, d);
    slope = below * d;
  }
};

template <class E>
inline E relu_of(E y) {
  if constexpr (sizeof(E) > 2) {
    return y < E(0) ? E(0) : y;
  } else {  // The bits are sign and magnitude. Negative numbers, except -0.0 and NaNs, are INT16_MIN + 1 .. -infinity.
    const auto bits = as<int16_t>(y);
    return as<E>(static_cast<int16_t>(bits > INT16_MIN && bits <= Element<E>::kMinusInfinity ? 0 : bits));
  }
}

// The step of sixteen elements of relu_and_pack, for traits that have nothing better.
template <class E>
inline uint16_t relu_of_sixteen(const E* from, E* to) {
  unsigned gates = 0;
  for (int k = 0; k < 16; ++k) {
    gates |= static_cast<unsigned>(static_cast<typename Element<E>::Compute>(from[k]) > 0) << k;
    to[k] = relu_of(from[k]);
  }
  return static_cast<uint16_t>(gates);
}

template <class I, class E>
struct Rows {
  using Bits = typename Element<E>::Bits;
  using C = typename Element<E>::Compute;
  static constexpr int64_t kStep = 16;  // I::keep takes this many elements.

  static void relu(const void* from_, void* to_, int64_t width) {
    const E* from = static_cast<const E*>(from_);
    E* to = static_cast<E*>(to_);
    GATEDOPS_INDEPENDENT
    for (int64_t j = 0; j < width; ++j) {
      to[j] = relu_of(from[j]);
    }
  }

  static void relu_and_pack(const void* from_, void* to_, int64_t width, uint32_t* words) {
    const E* from = static_cast<const E*>(from_);
    E* to = static_cast<E*>(to_);
    int64_t j = 0;
    for (; j + 2 * kStep <= width; j += 2 * kStep) {
      const uint32_t low = I::relu(from + j, to + j), high = I::relu(from + j + kStep, to + j + kStep);
      words[j / 32] = low | high << 16;
    }
    if (j < width) {
      uint32_t word = 0;
      for (int64_t k = j; k < width; ++k) {
        word |= static_cast<uint32_t>(static_cast<C>(from[k]) > C(0)) << (k - j);
        to[k] = relu_of(from[k]);
      }
      words[j / 32] = word;
    }
  }

  static void select(const void* from_, void* to_, const uint32_t* words, int64_t width) {
    const Bits* from = static_cast<const Bits*>(from_);
    Bits* to = static_cast<Bits*>(to_);
    int64_t j = 0;
    for (; j + kStep <= width; j += kStep) {
      I::keep(from + j, to + j, static_cast<uint16_t>(words[j / 32] >> (j % 32)));
    }
    for (; j < width; ++j) {
      to[j] = (words[j / 32] >> (j % 32) & 1) != 0 ? from[j] : Bits(0);
    }
  }

  static void select_planes(
      const void* from_, void* to_, const uint32_t* words, int64_t words_step, int64_t positions, int64_t channels,
      int64_t plane_stride) {
    constexpr int64_t kBlock = 64;
    const Bits* from = static_cast<const Bits*>(from_);
    Bits* to = static_cast<Bits*>(to_);
    for (int64_t p = 0; p < positions; p += kBlock) {
      const int64_t n = positions - p < kBlock ? positions - p : kBlock;
      alignas(64) uint32_t gates[kBlock];  // For each position this has the word of 32 channels.
      for (int64_t c = 0; c < channels; ++c) {
        if (c % 32 == 0) {
          for (int64_t k = 0; k < n; ++k) {
            gates[k] = words[(p + k) * words_step + c / 32];
          }
        }
        const Bits* plane = from + c * plane_stride + p;
        Bits* out = to + c * plane_stride + p;
        GATEDOPS_INDEPENDENT
        for (int64_t k = 0; k < n; ++k) {
          const Bits value = plane[k];
          out[k] = (gates[k] >> (c % 32) & 1) != 0 ? value : Bits(0);
        }
      }
    }
  }

  static void multiply(const void* a_, const void* b_, void* to_, int64_t width) {
    const E *a = static_cast<const E*>(a_), *b = static_cast<const E*>(b_);
    E* to = static_cast<E*>(to_);
    GATEDOPS_INDEPENDENT
    for (int64_t j = 0; j < width; ++j) {
      to[j] = static_cast<E>(static_cast<C>(a[j]) * static_cast<C>(b[j]));
    }
  }

  static void add(const void* y_, void* sums_, int64_t width) {
    const E* y = static_cast<const E*>(y_);
    C* sums = static_cast<C*>(sums_);
    GATEDOPS_INDEPENDENT
    for (int64_t j = 0; j < width; ++j) {
      sums[j] += static_cast<C>(y[j]);
    }
  }

  static void soft_pair(const SoftRow& row, const void* q_, const void* v_, void* h_, void* z_) {
    const E *q = static_cast<const E*>(q_), *v = static_cast<const E*>(v_);
    E* z = static_cast<E*>(z_);
    const C beta = static_cast<C>(row.beta), gain = static_cast<C>(row.gain);
    GATEDOPS_INDEPENDENT
    for (int64_t j = 0; j < row.width; ++j) {
      const C gate = gain * Sigmoid<C>(beta * static_cast<C>(q[j])).value;
      z[j] = static_cast<E>(static_cast<C>(v[j]) * gate);
    }
    if (h_ != nullptr) {
      relu(q_, h_, row.width);
    }
  }

  static void soft_pair_backward(
      const SoftRow& row, bool linear, const void* q_, const void* v_, const void* gh_, const void* gz_, void* dq_,
      void* dv_) {
    const E *q = static_cast<const E*>(q_), *gz = static_cast<const E*>(gz_);
    E* dv = static_cast<E*>(dv_);
    const C beta = static_cast<C>(row.beta), gain = static_cast<C>(row.gain);
    if (dq_ == nullptr) {
      GATEDOPS_INDEPENDENT
      for (int64_t j = 0; j < row.width; ++j) {
        const C gate = gain * Sigmoid<C>(beta * static_cast<C>(q[j])).value;
        dv[j] = static_cast<E>(static_cast<C>(gz[j]) * gate);
      }
      return;
    }
    const E *v = static_cast<const E*>(v_), *gh = static_cast<const E*>(gh_);
    E* dq = static_cast<E*>(dq_);
    GATEDOPS_INDEPENDENT
    for (int64_t j = 0; j < row.width; ++j) {
      const C activation = static_cast<C>(q[j]), grad = static_cast<C>(gz[j]);
      const Sigmoid<C> gate(beta * activation);
      const C through = choose(linear | (activation > C(0)), static_cast<C>(gh[j]), C(0));
      dq[j] = static_cast<E>(grad * static_cast<C>(v[j]) * (gain * beta * gate.slope) + through);
      dv[j] = static_cast<E>(grad * (gain * gate.value));
    }
  }

  static constexpr RowKernels kernels() {
    return {relu, relu_and_pack, select, select_planes, multiply, add, soft_pair, soft_pair_backward};
  }
};

template <class I>
RowKernels rows_for(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Rows<I, double>::kernels();
    case ScalarType::BFloat16:
      return Rows<I, BFloat16>::kernels();
    case ScalarType::Half:
      return Rows<I, Half>::kernels();
    default:
      return Rows<I, float>::kernels();
  }
}

}  // namespace
}  // namespace gatedops::cpu
