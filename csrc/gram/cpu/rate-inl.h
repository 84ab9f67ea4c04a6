// The loop that measures the inner operations of the traits I of tile-inl.h. Include this file after tile-inl.h and
// after the traits.
//
// The loop is Tile<I>::count_piece without its reads of a panel: the words of the columns stay in registers. Everything
// else is the kernel's own: I::broadcast of each row's word, I::step for each pair of a row and a vector of columns,
// I::fold and I::add after I::kMaxSteps steps. The I::kRows x I::kVecs counters of a register tile hide the latencies.
namespace gatedops::cpu {
namespace {

#if defined(__x86_64__)
#define GATEDOPS_IN_REGISTER "+v"
#elif defined(__aarch64__)
#define GATEDOPS_IN_REGISTER "+w"
#else
#define GATEDOPS_IN_REGISTER "+m"  // which letter stands for vector registers on such a machine is not known here
#endif

// Makes the compiler believe that a vector changes here, without an instruction: it must not compute once, before the
// loop, what depends on the vector.
template <class V>
GATEDOPS_INLINE void renew(V& vector) {
  asm volatile("" : GATEDOPS_IN_REGISTER(vector));
}

// Does the same for the memory behind a pointer: each step broadcasts the words of its rows again, as the kernels do.
GATEDOPS_INLINE void renew(const uint32_t*& words) {
  asm volatile("" : "+r"(words) : : "memory");
}

#undef GATEDOPS_IN_REGISTER

template <class I>
struct Rate {
  using Counts = typename Tile<I>::Counts;
  static constexpr int64_t kBitPairs = int64_t{32} * I::kRows * I::kVecs * I::kLanes * I::kMaxSteps;

  static void run(int64_t rounds) {
    uint32_t bits[I::kRows + I::kVecs * I::kLanes];
    uint32_t word = 0;
    for (uint32_t& each : bits) {
      word += 0x9e3779b9u;  // About half of the bits are on, because the clock may depend on the bits.
      each = word;
    }
    const uint32_t* rows = bits;
    typename I::Column columns[I::kVecs];
    Counts total;
    Tile<I>::each([&](int r, int c, int) {
      columns[c] = I::column_of(I::load(bits + I::kRows + c * I::kLanes));
      total[r][c] = I::zero();
    });
    for (int64_t round = 0; round < rounds; ++round) {
      Counts acc;
      Tile<I>::each([&](int r, int c, int) { acc[r][c] = I::zero(); });
      for (int k = 0; k < I::kMaxSteps; ++k) {
        step(rows, columns, acc);
      }
      Tile<I>::each([&](int r, int c, int) { total[r][c] = I::add(total[r][c], I::fold(acc[r][c])); });
    }
    Tile<I>::each([&](int r, int c, int) { renew(total[r][c]); });
  }

  GATEDOPS_INLINE static void step(const uint32_t*& rows, typename I::Column (&columns)[I::kVecs], Counts& acc) {
    renew(rows);
    for (int c = 0; c < I::kVecs; ++c) {
      renew(columns[c]);
    }
    for (int r = 0; r < I::kRows; ++r) {
      const typename I::Row a = I::broadcast(rows + r);
      for (int c = 0; c < I::kVecs; ++c) {
        acc[r][c] = I::step(acc[r][c], a, columns[c]);
        renew(acc[r][c]);  // else the compiler begins all steps of the register tile at once and runs out of registers
      }
    }
  }

  static constexpr RateLoop loop() {
    return {kBitPairs, run};
  }
};

}  // namespace
}  // namespace gatedops::cpu
