// npk_matvec and npk_gram_backward: out = K v with K = Sigma * Lambda made tile by tile and never
// stored. A symmetric tile serves two row blocks of the output, out_I += K_IJ v_J and
// out_J += K_IJ^T v_I, so no pair is computed twice; the blocks meet in a round-robin tournament,
// which fixes the order of every sum whatever the number of threads.
#include <torch/csrc/stable/library.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "../kernel.h"
#include "gram_args.h"
#include "gram_problem.h"

namespace gatedops::cpu {
namespace {

// Columns of v multiplied at a time.
constexpr int64_t kColumns = 512;

// Columns as handed to the matrix product: BLAS is several times slower on 2 to 15 columns than on 16.
int64_t padded(int64_t columns) { return columns == 1 ? 1 : (columns + 15) / 16 * 16; }

template <class T>
struct ProductScratch {
  ProductScratch(int64_t edge, int64_t columns)
      : right(static_cast<size_t>(edge * padded(std::min(kColumns, columns)))), part(right.size()) {}
  std::vector<T> right, part;
};

// out (n, c) += tile (n x m) v (m, c), by torch's matrix product.
template <class T>
void accumulate(const Matrix& tile, const Matrix& v, const Matrix& out, ProductScratch<T>& s) {
  for (int64_t c = 0; c < v.cols; c += kColumns) {
    const int64_t width = std::min(kColumns, v.cols - c), stride = padded(width);
    const Matrix right = Matrix::of(s.right.data(), v.rows, stride, stride);
    convert(v.block(0, v.rows, c, width), right.block(0, v.rows, 0, width));
    mm(tile, right, Matrix::of(s.part.data(), tile.rows, stride, stride));
    for (int64_t i = 0; i < tile.rows; ++i) {
      T* to = reinterpret_cast<T*>(out.data) + i * out.row_stride + c;
      const T* from = s.part.data() + i * stride;
      for (int64_t j = 0; j < width; ++j) {
        to[j] += from[j];
      }
    }
  }
}

// The rounds of a tournament of `teams` blocks (circle method): in each round every block meets at
// most one other. An odd number of blocks plays with a bye.
class Tournament {
 public:
  explicit Tournament(int64_t teams) : teams_(teams), seats_(teams + teams % 2) {}

  int64_t rounds() const { return teams_ < 2 ? 0 : seats_ - 1; }
  int64_t matches() const { return seats_ / 2; }  // per round

  // Match k of a round; second == first stands for a bye.
  std::pair<int64_t, int64_t> match(int64_t round, int64_t k) const {
    const int64_t circle = seats_ - 1;
    if (k == 0) {
      return {round, teams_ == seats_ ? circle : round};
    }
    return {(round + k) % circle, (round + circle - k) % circle};
  }

 private:
  int64_t teams_, seats_;
};

template <class T>
class Contraction {
 public:
  Contraction(const GramProblem& p, const SigmaSource<T>* sigma, const std::vector<double>& scale, const Tensor& v,
              Tensor& out)
      : p_(p),
        sigma_(sigma),
        scale_(scale.begin(), scale.end()),
        v_(v),
        out_(out),
        buffers_(worker_buffers<T>(p, sigma)),
        products_(buffers_.size(), ProductScratch<T>(p.edge, v_.cols)) {}

  void run() {
    if (p_.symmetric) {
      run_symmetric();
    } else {
      run_tasks(p_.row_tiles(), [&](int64_t worker, int64_t row) {
        for (int64_t col = 0; col < p_.col_tiles(); ++col) {
          add(worker, p_.rect(row, col), false);
        }
      });
    }
  }

 private:
  // Tasks come in round order, and one waits only for earlier ones: of its two blocks, that each has
  // finished its previous round. Round 0 is the diagonal.
  void run_symmetric() {
    const int64_t blocks = p_.row_tiles();
    const Tournament games(blocks);
    std::vector<std::atomic<int64_t>> done(static_cast<size_t>(blocks));
    run_tasks(blocks + games.rounds() * games.matches(), [&](int64_t worker, int64_t t) {
      if (t < blocks) {
        add(worker, p_.rect(t, t), false);
        done[t].store(1, std::memory_order_release);
        return;
      }
      const int64_t round = (t - blocks) / games.matches();
      const auto [a, b] = games.match(round, (t - blocks) % games.matches());
      wait_for(done[a], round + 1);
      wait_for(done[b], round + 1);
      if (a != b) {
        add(worker, p_.rect(std::max(a, b), std::min(a, b)), true);
      }
      done[a].store(round + 2, std::memory_order_release);
      done[b].store(round + 2, std::memory_order_release);
    });
  }

  static void wait_for(const std::atomic<int64_t>& done, int64_t rounds) {
    while (done.load(std::memory_order_acquire) < rounds) {
      std::this_thread::yield();
    }
  }

  void add(int64_t worker, const TileRect& tile, bool both) {
    TileBuffers<T>& b = buffers_[worker];
    compute_tile(p_, tile, sigma_, scale_, b);
    const Matrix values = Matrix::of(b.product.data(), tile.rows, tile.cols, kTileStride);
    accumulate(values, rows_of(v_, tile.j, tile.cols), rows_of(out_, tile.i, tile.rows), products_[worker]);
    if (both) {
      accumulate(
          values.transposed(), rows_of(v_, tile.i, tile.rows), rows_of(out_, tile.j, tile.cols), products_[worker]);
    }
  }

  static Matrix rows_of(const Matrix& m, int64_t row, int64_t n) { return m.block(row, n, 0, m.cols); }

  const GramProblem& p_;
  const SigmaSource<T>* sigma_;
  std::vector<T> scale_;
  Matrix v_, out_;
  std::vector<TileBuffers<T>> buffers_;
  std::vector<ProductScratch<T>> products_;
};

template <class T>
Tensor contract(const GramArgs& args, const SigmaSource<T>* sigma, const Tensor& v) {
  Tensor out = torch::stable::new_zeros(v, {args.n(), v.size(1)});
  const GramProblem problem(args.words, args.y_words, args.layers);
  if (v.size(1) > 0) {
    Contraction<T>(problem, sigma, args.scale, v, out).run();
  }
  return out;
}

void require_right_factor(const Tensor& v, int64_t m, const char* name) {
  require_float(v.scalar_type(), name);
  require(
      v.dim() == 2 && v.size(0) == m,
      std::string(name) + ": got shape " + shape_of(v) + ", needs (" + std::to_string(m) + ", c)");
}

Tensor npk_matvec(
    const std::optional<Tensor>& x, const Tensor& words, const std::optional<Tensor>& y,
    const std::optional<Tensor>& y_words, const Tensor& v, std::vector<int64_t> first,
    std::vector<int64_t> y_first, std::vector<int64_t> count, std::vector<double> scale) {
  const GramArgs args{x, words, y, y_words, {first, y_first, count}, scale};
  args.require_valid();
  require_right_factor(v, args.m(), "v");
  if (v.scalar_type() == ScalarType::Float) {
    return contract<float>(args, sigma_source<float>(args).get(), v);
  }
  return contract<double>(args, sigma_source<double>(args).get(), v);
}

// (G * Lambda) y; ((G + G^T) * Lambda) y where y_words is absent.
Tensor npk_gram_backward(
    const Tensor& grad, const Tensor& words, const Tensor& y, const std::optional<Tensor>& y_words,
    std::vector<int64_t> first, std::vector<int64_t> y_first, std::vector<int64_t> count,
    std::vector<double> scale) {
  const GramArgs args{{}, words, {}, y_words, {first, y_first, count}, scale};
  args.require_valid();
  require_right_factor(y, args.m(), "y");
  require(
      grad.dim() == 2 && grad.size(0) == args.n() && grad.size(1) == args.m(),
      "grad: got shape " + shape_of(grad) + ", needs that of the Gram");
  const bool symmetric = !y_words;
  if (y.scalar_type() == ScalarType::Float) {
    const GivenSigma<float> given(grad, symmetric);
    return contract<float>(args, &given, y);
  }
  const GivenSigma<double> given(grad, symmetric);
  return contract<double>(args, &given, y);
}

}  // namespace
}  // namespace gatedops::cpu

STABLE_TORCH_LIBRARY_IMPL(gatedops, CPU, m) {
  m.impl("npk_matvec", GATEDOPS_KERNEL(gatedops::cpu::npk_matvec));
  m.impl("npk_gram_backward", GATEDOPS_KERNEL(gatedops::cpu::npk_gram_backward));
}
