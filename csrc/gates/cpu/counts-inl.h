// The positional popcount, written once over an instruction set's traits I; gram/cpu/tile-inl.h says how such a body is
// compiled.
//
// Every bit of an I::Vector (I::kWords words) has a counter. Counters are stored across vectors, the planes: bit b of
// plane k is bit k of the counter at b. I::carry is a full adder of all counters at once. Sixteen rows cost fifteen
// full adders and leave one carry of weight 16 (Harley and Seal). A full adder turns two carries of equal weight and
// their plane into one carry of twice the weight. So a row costs one full adder in all, whatever the number of rows.
//
// Memory bounds this: a row's words are read once, and a full adder is two instructions on AVX-512 and five on AVX2.
// The counts are written once for each task.

namespace gatedops::cpu {
namespace {

constexpr int64_t kStepRows = 16;
constexpr int kStepLevel = 4;  // A step has 2^4 rows.
constexpr int kLevels = 16;    // Weights are 1 .. 2^15.
static_assert(kCountRows == int64_t{1} << (kLevels - 1), "the counters hold the rows of one call");

// The rows of one step, restricted to the words of one vector.
template <class I, bool whole>
struct StepRows {
  const uint32_t* first;
  int64_t stride, rows;
  typename I::Lanes lanes;

  typename I::Vector at(int64_t row) const {
    // Prefetches the same row of the next step; a prefetch past the end does nothing. Without it counting is 15 to 30 %
    // slower.
    __builtin_prefetch(first + (row + kStepRows) * stride);
    return whole || row < rows ? I::load(first + row * stride, lanes) : I::zero();
  }
};

template <class I>
class Counter {
 public:
  using Vector = typename I::Vector;

  Counter() {
    for (Vector& plane : planes_) {
      plane = I::zero();
    }
  }

  // Adds the rows of step number `step`; steps come in order. A bit of step is set if a carry of its weight waits.
  template <class Rows>
  void add(const Rows& rows, int64_t step) {
    // A copy stays in registers. The compiler cannot rule out that rows point into planes_.
    Vector low[kStepLevel];
    std::copy_n(planes_, kStepLevel, low);
    Vector carry = sum<kStepLevel>(rows, 0, low);
    std::copy_n(low, kStepLevel, planes_);
    int level = kStepLevel;
    for (; step & 1; step >>= 1, ++level) {
      carry = I::carry(planes_[level], waiting_[level], carry);
    }
    waiting_[level] = carry;
  }

  // Adds the counts of `rows` rows in `steps` steps.
  void flush(int64_t rows, int64_t steps, int64_t words, int64_t* counts, bool shared) const {
    uint32_t total[32][I::kWords] = {};
    for (int level = 0; rows >> level != 0; ++level) {
      accumulate(planes_[level], level, total);
    }
    for (int level = kStepLevel; steps != 0; steps >>= 1, ++level) {
      if (steps & 1) {
        accumulate(waiting_[level], level, total);
      }
    }
    for (int64_t w = 0; w < words; ++w) {
      for (int64_t b = 0; b < 32; ++b) {
        int64_t* count = counts + 32 * w + b;
        if (shared) {
          __atomic_fetch_add(count, static_cast<int64_t>(total[b][w]), __ATOMIC_RELAXED);
        } else {
          *count += total[b][w];
        }
      }
    }
  }

 private:
  // Adds 2^level rows from `row` on to the planes below level, and returns the carry of weight 2^level.
  template <int level, class Rows>
  GATEDOPS_INLINE static Vector sum(const Rows& rows, int64_t row, Vector* low) {
    if constexpr (level == 0) {
      return rows.at(row);
    } else {
      const Vector a = sum<level - 1>(rows, row, low);
      const Vector b = sum<level - 1>(rows, row + (1 << (level - 1)), low);
      return I::carry(low[level - 1], a, b);
    }
  }

  static void accumulate(const Vector& plane, int level, uint32_t (&total)[32][I::kWords]) {
    alignas(64) uint32_t lane[I::kWords];
    I::store(lane, plane);
    for (int b = 0; b < 32; ++b) {
      for (int w = 0; w < I::kWords; ++w) {
        total[b][w] += (lane[w] >> b & 1u) << level;
      }
    }
  }

  Vector planes_[kLevels], waiting_[kLevels];
};

template <class I, bool whole>
void count_step(
    const uint32_t* words, int64_t stride, int64_t rows, int64_t row_words, int64_t step, Counter<I>* counters) {
  for (int64_t w = 0; w < row_words; w += I::kWords, ++counters) {
    const int64_t used = row_words - w < I::kWords ? row_words - w : I::kWords;
    counters->add(StepRows<I, whole>{words + w, stride, rows, I::lanes(used)}, step);
  }
}

template <class I>
void count_rows(const uint32_t* words, int64_t stride, int64_t rows, int64_t row_words, int64_t* counts, bool shared) {
  Counter<I> counters[kCountWords / I::kWords];
  const int64_t whole_steps = rows / kStepRows, rest = rows % kStepRows;
  for (int64_t step = 0; step < whole_steps; ++step) {
    count_step<I, true>(words + step * kStepRows * stride, stride, kStepRows, row_words, step, counters);
  }
  if (rest != 0) {
    count_step<I, false>(words + whole_steps * kStepRows * stride, stride, rest, row_words, whole_steps, counters);
  }
  const int64_t steps = whole_steps + (rest != 0);
  for (int64_t w = 0; w < row_words; w += I::kWords) {
    const int64_t used = row_words - w < I::kWords ? row_words - w : I::kWords;
    counters[w / I::kWords].flush(rows, steps, used, counts + 32 * w, shared);
  }
}

}  // namespace
}  // namespace gatedops::cpu
