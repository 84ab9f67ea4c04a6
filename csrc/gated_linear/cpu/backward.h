// The backward of layers with hard gates or without gates. dv is grad with zeros for the gates that are off; the
// backward needs dv, the sums of its columns, and two products with it.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "args.h"
#include "core/cpu/parallel.h"

namespace gatedops::cpu {

// Checks the arguments of a backward. x is given if the gradient of the weight is wanted, weight if that of x is.
inline void require_backward(
    const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight, const char* grad_name,
    const char* x_name, const char* weight_name) {
  require_layer_dtype(grad, grad_name);
  require(grad.dim() >= 1 && grad.size(grad.dim() - 1) >= 1, [&] {
    return std::string(grad_name) + ": needs (..., out_features)";
  });
  const int64_t width = grad.size(grad.dim() - 1);
  if (x) {
    require(
        x->dim() == grad.dim() && x->scalar_type() == grad.scalar_type() && number_of_rows(*x) == number_of_rows(grad),
        [&] {
          return std::string(x_name) + ": got shape " + shape_of(*x) + ", needs one row per row of " + grad_name;
        });
  }
  if (weight) {
    require(weight->dim() == 2 && weight->size(0) == width && weight->scalar_type() == grad.scalar_type(), [&] {
      return std::string(weight_name) + ": got shape " + shape_of(*weight) + ", needs (" + std::to_string(width) +
             ", in_features)";
    });
  }
}

// --- memory for dv ---

// Memory of `bytes` bytes, aligned to a cache line, until the end of the scope. The calling thread keeps up to kKept
// bytes for its next call, because page faults in fresh memory take longer than masking a gradient. A thread may have
// only one Scratch at a time.
class Scratch {
 public:
  static constexpr size_t kKept = size_t{32} << 20;

  explicit Scratch(size_t bytes) {
    if (bytes > kKept) {
      own_ = allocate(bytes);
      data_ = own_.get();
      return;
    }
    thread_local Kept kept;
    if (bytes > kept.bytes) {
      kept = Kept{};
      kept = Kept{allocate(bytes), bytes};
    }
    data_ = kept.memory.get();
  }

  // Any thread may use the memory.
  char* data() const {
    return data_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Release {
    void operator()(char* memory) const {
      ::operator delete(memory, kAlignment);
    }
  };
  using Memory = std::unique_ptr<char, Release>;
  struct Kept {
    Memory memory;
    size_t bytes = 0;
  };

  static Memory allocate(size_t bytes) {
    return Memory(static_cast<char*>(::operator new(bytes, kAlignment)));
  }

  Memory own_;
  char* data_ = nullptr;
};

// --- gradients of biases ---

// Sums the columns of a matrix while its rows are produced. One thread takes each block of kRows rows; the sums of the
// blocks are then added up in float64.
class BiasSums {
 public:
  static constexpr int64_t kRows = 64;

  BiasSums(const RowKernels& kernels, ScalarType dtype, int64_t rows, int64_t width, bool wanted)
      : add_(kernels.add),
        width_(width),
        blocks_((rows + kRows - 1) / kRows),
        size_(dtype == ScalarType::Double ? sizeof(double) : sizeof(float)),
        wanted_(wanted),
        partial_(wanted ? static_cast<size_t>(blocks_ * width) * size_ : 0) {}

  void add(int64_t row, const void* y) {
    if (wanted_) {
      add_(y, partial_.data() + static_cast<size_t>(row / kRows * width_) * size_, width_);
    }
  }

  // Returns the sums (width,) in the dtype of `like`; an empty tensor if they are not wanted.
  Tensor result(const Tensor& like) const {
    Tensor out = new_tensor({wanted_ ? width_ : 0}, like.scalar_type());
    if (wanted_) {
      std::vector<double> total(static_cast<size_t>(width_));
      size_ == sizeof(double) ? accumulate<double>(total) : accumulate<float>(total);
      store(total, out);
    }
    return out;
  }

 private:
  template <class C>
  void accumulate(std::vector<double>& total) const {
    const C* partial = reinterpret_cast<const C*>(partial_.data());
    for (int64_t b = 0; b < blocks_; ++b) {
      for (int64_t j = 0; j < width_; ++j) {
        total[j] += partial[b * width_ + j];
      }
    }
  }

  static void store(const std::vector<double>& total, const Tensor& out) {
    switch (out.scalar_type()) {
      case ScalarType::Double:
        return store_as<double>(total, out);
      case ScalarType::BFloat16:
        return store_as<torch::headeronly::BFloat16>(total, out);
      case ScalarType::Half:
        return store_as<torch::headeronly::Half>(total, out);
      default:
        return store_as<float>(total, out);
    }
  }

  template <class E>
  static void store_as(const std::vector<double>& total, const Tensor& out) {
    using C = std::conditional_t<std::is_same_v<E, double>, double, float>;
    E* to = static_cast<E*>(out.mutable_data_ptr());
    for (size_t j = 0; j < total.size(); ++j) {
      to[j] = static_cast<E>(static_cast<C>(total[j]));
    }
  }

  void (*add_)(const void*, void*, int64_t);
  int64_t width_, blocks_;
  size_t size_;
  bool wanted_;
  std::vector<char> partial_;
};

// Calls f(row) for every row of the blocks [begin, end) of BiasSums.
template <class F>
void for_rows_of_blocks(int64_t begin, int64_t end, int64_t rows, const F& f) {
  for (int64_t row = begin * BiasSums::kRows; row < std::min(rows, end * BiasSums::kRows); ++row) {
    f(row);
  }
}

// Calls f(row) for every row. One thread takes all rows of a block of BiasSums.
template <class F>
void for_row_blocks(int64_t rows, int64_t row_bytes, const F& f) {
  const int64_t blocks = (rows + BiasSums::kRows - 1) / BiasSums::kRows;
  const int64_t grain = std::max<int64_t>(1, grain_of(row_bytes) / BiasSums::kRows);
  torch::stable::parallel_for(
      0, blocks, grain, [&](int64_t begin, int64_t end) { for_rows_of_blocks(begin, end, rows, f); });
}

// --- products ---

// Computes out = a b by torch's CPU kernel. The dispatcher, autograd and autocast take no part. In a task of the thread
// pool the product runs on the task's thread alone.
inline void product(const Matrix& a, const Matrix& b, const Matrix& out) {
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.tensor().get(), a.tensor().get(), b.tensor().get()));
}

// Returns a contiguous tensor (..., d) as a matrix (rows, d).
inline Matrix rows_as_matrix(const Tensor& t) {
  Matrix m;
  m.data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  m.rows = number_of_rows(t);
  m.cols = m.row_stride = t.size(t.dim() - 1);
  m.col_stride = 1;
  m.dtype = t.scalar_type();
  m.element_size = static_cast<int64_t>(t.element_size());
  return m;
}

// Returns a tensor (..., d) as a matrix (rows, d) over memory that `owner` keeps alive.
inline Matrix as_matrix(const Tensor& t, Tensor& owner) {
  if (t.dim() != 2 && t.is_contiguous()) {
    owner = t;
    return rows_as_matrix(t);
  }
  // reshape gives a view if t's strides allow one. Its rows may lie apart.
  owner = t.dim() == 2 ? t : torch::stable::reshape(t, {number_of_rows(t), t.size(t.dim() - 1)});
  return Matrix(owner);
}

// Tells whether independent products of at most `most` multiply-adds run side by side, half of them on each of two
// threads.
//
// Torch would divide each product among both threads. They would wait for each other after each product, and each would
// hold half of every matrix in its cache.
//
// With more than two threads all products are left to torch. Its parallel regions do not nest, so that a product cannot
// run on half of the threads: inside a task it runs on the task's thread alone, and all threads but two would idle.
// Cutting the products into blocks of rows, one for each thread, would make every thread pack the whole other factor
// for its few rows, and the order of sums would depend on the number of threads.
inline bool run_apart(int64_t work, int64_t most) {
  return workers() == 2 && work > 0 && work <= most;
}

// Calls first() and second(), which are independent: if `apart`, at the same time on one thread each, else one after
// the other.
template <class First, class Second>
void run_both(bool apart, const First& first, const Second& second) {
  if (!apart) {
    first();
    second();
    return;
  }
  torch::stable::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t half = begin; half < end; ++half) {
      half == 0 ? first() : second();
    }
  });
}

// The two products of the backward of one layer. dv (rows, out_features) is the gradient of the layer's own product.
// dx = dv weight if weight is given, and dw = dv^T x if x is given; a product that is not wanted is empty.
class LayerProducts {
 public:
  Tensor dx, dw;

  // grad is a tensor (..., out_features) that has the leading dimensions and the dtype of dv.
  LayerProducts(const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight)
      : has_x_(x.has_value()), has_weight_(weight.has_value()), dv_(rows_as_matrix(grad)) {
    dx = weight ? new_rows(grad, weight->size(1)) : nothing(grad);
    dw = x ? new_tensor({dv_.cols, x->size(x->dim() - 1)}, grad.scalar_type()) : nothing(grad);
    if (x) {
      x_ = as_matrix(*x, x_owner_);
    }
    if (weight) {
      weight_ = Matrix(*weight);
    }
  }

  // Says where dv begins; its rows follow each other.
  void put_dv(char* data) {
    dv_.data = data;
  }

  // Returns the multiply-adds of one of the products, or 0 if there is no product.
  int64_t work() const {
    return dv_.rows * dv_.cols * (has_weight_ ? weight_.cols : has_x_ ? x_.cols : 0);
  }

  void multiply() const {
    // Larger products are as fast if torch divides each of them (measured on two cores).
    constexpr int64_t kSmall = int64_t{1} << 25;
    run_both(has_x_ && has_weight_ && run_apart(work(), kSmall), [&] { multiply_input(); }, [&] { multiply_weight(); });
  }

 private:
  bool has_x_, has_weight_;
  Matrix dv_, x_, weight_;
  Tensor x_owner_;

  void multiply_input() const {
    if (has_weight_) {
      product(dv_, weight_, rows_as_matrix(dx));
    }
  }
  void multiply_weight() const {
    if (has_x_) {
      product(dv_.transposed(), x_, Matrix(dw));
    }
  }
};

// Tells whether the products of two layers run side by side, one layer on each thread.
inline bool run_apart(const LayerProducts& one, const LayerProducts& other) {
  // This was measured as in LayerProducts::multiply, for four products.
  constexpr int64_t kSmall = int64_t{1} << 30;
  return run_apart(one.work(), kSmall) && run_apart(other.work(), kSmall);
}

// --- layers ---

// The backward of one layer. Without gates dv is grad itself; with gates put_dv says where dv is to lie.
class LayerBackward {
 public:
  LayerBackward(
      const Tensor& grad, const std::optional<Tensor>& x, const std::optional<Tensor>& weight,
      const std::optional<Tensor>& words, int64_t first, bool bias)
      : grad_(contiguous_rows(grad)),
        from_(grad_),
        gates_(words ? GateView(*words, first) : GateView()),
        gated_(words.has_value()),
        bias_(bias),
        kernels_(row_kernels(grad_.scalar_type())),
        sums_(kernels_, grad_.scalar_type(), from_.rows, from_.width, bias),
        products_(grad_, x, weight),
        dv_(from_) {}

  // Returns how many bytes dv needs, a multiple of a cache line.
  size_t dv_bytes() const {
    return gated_ ? static_cast<size_t>(from_.rows * from_.row_bytes + 63) / 64 * 64 : 0;
  }

  void put_dv(char* data) {
    if (gated_) {
      dv_.data = data;
      products_.put_dv(data);
    }
  }

  const LayerProducts& products() const {
    return products_;
  }

  // Computes dv and the sums of its columns on all threads.
  void mask() {
    if (gated_ || bias_) {
      for_row_blocks(from_.rows, from_.row_bytes, [&](int64_t row) { mask_row(row); });
    }
  }
  // Computes the same on the calling thread.
  void mask_here() {
    for_rows_of_blocks(0, from_.rows, from_.rows, [&](int64_t row) { mask_row(row); });
  }

  Tensor bias_gradient() const {
    return sums_.result(grad_);
  }

 private:
  Tensor grad_;
  RowView from_;
  GateView gates_;
  bool gated_, bias_;
  RowKernels kernels_;
  BiasSums sums_;
  LayerProducts products_;
  RowView dv_;

  void mask_row(int64_t row) {
    if (gated_) {
      kernels_.select(from_[row], dv_[row], gates_[row], from_.width);
    }
    sums_.add(row, dv_[row]);
  }
};

// Runs the backward of one layer: all threads mask its rows, then come the products.
inline void run_backward(LayerBackward& layer) {
  layer.mask();
  layer.products().multiply();
}

// Runs the backwards of both layers, side by side if each is small enough.
inline void run_backward(LayerBackward& one, LayerBackward& other) {
  if (!run_apart(one.products(), other.products())) {
    run_backward(one);
    run_backward(other);
    return;
  }
  const auto on_one_thread = [](LayerBackward& layer) {
    layer.mask_here();
    layer.products().multiply();
  };
  run_both(true, [&] { on_one_thread(one); }, [&] { on_one_thread(other); });
}

}  // namespace gatedops::cpu
