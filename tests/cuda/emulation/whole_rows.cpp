// Makes the functions of csrc/gram/cuda/tensors.h ops on CPU tensors. They return the result, and whether it has the
// memory of the argument.
#include "gram/cuda/tensors.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

namespace {

using torch::stable::Tensor;

std::tuple<Tensor, bool> result(const Tensor& found, const Tensor& given) {
  return {torch::stable::clone(found), found.const_data_ptr() == given.const_data_ptr()};
}

std::tuple<Tensor, bool> whole_rows(const Tensor& t) {
  return result(gatedops::cuda::whole_rows(t), t);
}

// Returns the gates of both sides as a problem sees them.
std::tuple<Tensor, Tensor> whole_args(const Tensor& words, const Tensor& y_words) {
  const gatedops::cuda::WholeArgs args(gatedops::GramArgs::lambda(words, y_words, {}, {}));
  return {args.words, *args.y_words};
}

std::tuple<Tensor, bool> padded_bytes(const Tensor& t) {
  return result(gatedops::cuda::padded_bytes(t), t);
}

}  // namespace

STABLE_TORCH_LIBRARY(gatedops_whole_rows, m) {
  m.def("whole_rows(Tensor t) -> (Tensor, bool)");
  m.def("whole_args(Tensor words, Tensor y_words) -> (Tensor, Tensor)");
  m.def("padded_bytes(Tensor t) -> (Tensor, bool)");
}

STABLE_TORCH_LIBRARY_IMPL(gatedops_whole_rows, CPU, m) {
  m.impl("whole_rows", TORCH_BOX(&whole_rows));
  m.impl("whole_args", TORCH_BOX(&whole_args));
  m.impl("padded_bytes", TORCH_BOX(&padded_bytes));
}
