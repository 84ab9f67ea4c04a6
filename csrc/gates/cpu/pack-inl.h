// Packing kernels, written once over an instruction set's traits I; gram/cpu/tile-inl.h says how such a body is
// compiled.
//
// I::on(p) tells which of I::kLanes consecutive elements at p are on, as an I::Mask. I::bits turns the mask into the
// low bits of a word; I::set_bit turns it into bit `bit` of one word per lane.
//
// Memory bounds both loops. They read an element once (8, 4, 2 or 1 bytes) and write 1/8 byte for it. `row` reads and
// compares a vector of elements for each I::kLanes gates; `planes` also sets a bit in every lane.

namespace gatedops::cpu {
namespace {

inline bool is_on(float q) {
  return q > 0.0f;
}
inline bool is_on(double q) {
  return q > 0.0;
}
inline bool is_on(bool q) {
  return q;
}

// The bits of bf16 and fp16 are sign and magnitude. As integers, the positive numbers are 1 .. the bits of infinity;
// NaNs are larger.
struct Bf16 {
  int16_t bits;
  static constexpr int16_t kInfinity = 0x7f80;
};
struct F16 {
  int16_t bits;
  static constexpr int16_t kInfinity = 0x7c00;
};
template <class Half>
inline bool is_on(Half q) {
  return q.bits > 0 && q.bits <= Half::kInfinity;
}

template <class I, class E>
struct Pack {
  static uint32_t word(const E* q, int64_t n) {
    uint32_t w = 0;
    int k = 0;
    for (; k + I::kLanes <= n; k += I::kLanes) {
      w |= I::bits(I::on(q + k)) << k;
    }
    for (; k < n; ++k) {
      w |= static_cast<uint32_t>(is_on(q[k])) << k;
    }
    return w;
  }

  static void row(const void* q_, int64_t channels, uint32_t* words) {
    const E* q = static_cast<const E*>(q_);
    for (int64_t c = 0; c < channels; c += 32) {
      words[c / 32] = word(q + c, channels - c < 32 ? channels - c : 32);
    }
  }

  static void planes(const void* q_, int64_t positions, int64_t channels, int64_t channel_stride, uint32_t* words) {
    const E* q = static_cast<const E*>(q_);
    const int64_t per_position = 2 * ((channels + 63) / 64);
    for (int64_t c = 0; c < channels; c += 32) {
      const int64_t n = channels - c < 32 ? channels - c : 32;
      const E* plane = q + c * channel_stride;
      int64_t p = 0;
      for (; p + I::kLanes <= positions; p += I::kLanes) {
        alignas(64) uint32_t lane[I::kLanes];
        auto column = I::zero();
        for (int64_t bit = 0; bit < n; ++bit) {
          column = I::set_bit(column, I::on(plane + bit * channel_stride + p), static_cast<int>(bit));
        }
        I::store(lane, column);
        for (int k = 0; k < I::kLanes; ++k) {
          words[(p + k) * per_position + c / 32] = lane[k];
        }
      }
      for (; p < positions; ++p) {
        uint32_t w = 0;
        for (int64_t bit = 0; bit < n; ++bit) {
          w |= static_cast<uint32_t>(is_on(plane[bit * channel_stride + p])) << bit;
        }
        words[p * per_position + c / 32] = w;
      }
    }
  }

  static constexpr PackKernels kernels() {
    return {row, planes};
  }
};

template <class I>
PackKernels pack_for(GateSource source) {
  switch (source) {
    case GateSource::f64:
      return Pack<I, double>::kernels();
    case GateSource::bf16:
      return Pack<I, Bf16>::kernels();
    case GateSource::f16:
      return Pack<I, F16>::kernels();
    case GateSource::boolean:
      return Pack<I, bool>::kernels();
    case GateSource::f32:
      break;
  }
  return Pack<I, float>::kernels();
}

}  // namespace
}  // namespace gatedops::cpu
