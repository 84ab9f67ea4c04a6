// Every op schema of gatedops, once. The kernels of csrc/<family>/cpu/ register themselves for these ops. The kernels
// of csrc/<family>/cuda/ register themselves in the namespace gatedops_cuda, which gets the same schemas
// (gatedops/backends/cuda_library.py), because a kernel for GPUs has to be chosen first.
//
// Conventions: `words` is (n, W) int32, and bit j of a layer is bit j % 32 of its word j // 32. `first` and `count`
// name a layer by the index of its first word in a row and by how many words it uses. `y_first` is the first word on
// the side of y, whose rows may be laid out differently. If y_words is absent, the problem is symmetric: y = x, and
// each unordered pair of rows is computed once.
//
// `slope` has one number per layer: the activation of a gate that is off has this slope, and that of a gate that is on
// has slope 1 (docs/math.md, section 2). `widths` then has how many gates each layer has. If both are empty, every
// slope is 0.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gatedops, m) {
  m.def("pack_gates(Tensor q) -> Tensor");
  m.def("pack_gates_out(Tensor q, *, Tensor(a!) out) -> ()");
  m.def("unpack_gates(Tensor words, int positions, int channels) -> Tensor");

  // `measure` says which gates of a pair of rows are counted: "both" counts those that are on in both rows, "agree"
  // those that are the same in both, on or off, and "differ" those that are on in one row only. `widths` has how many
  // gates each layer has.
  m.def(
      "gate_overlap(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "int[] widths, str measure) -> Tensor");
  m.def(
      "gate_neighbors(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "float[] scale, int k, ScalarType dtype, float[] slope=[], int[] widths=[]) -> (Tensor, Tensor)");
  // With factor (n) and y_factor (m), float64, the results are K_ij * (factor_i * y_factor_j). y_factor is given if and
  // only if factor and y_words are.
  m.def(
      "npk_gram(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor? factor, Tensor? y_factor, int[] first, "
      "int[] y_first, "
      "int[] count, float[] scale, ScalarType dtype, float[] slope=[], int[] widths=[]) -> Tensor");
  m.def(
      "npk_gram_out(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor? factor, Tensor? y_factor, int[] "
      "first, int[] y_first, "
      "int[] count, float[] scale, float[] slope=[], int[] widths=[], *, Tensor(a!) out) -> ()");
  m.def(
      "npk_gram_backward(Tensor grad, Tensor words, Tensor y, Tensor? y_words, int[] first, "
      "int[] y_first, int[] count, float[] scale, float[] slope=[], int[] widths=[]) -> Tensor");
  m.def(
      "npk_matvec(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor v, int[] first, "
      "int[] y_first, int[] count, float[] scale, float[] slope=[], int[] widths=[]) -> Tensor");
  // Returns K v in float64 for K in float32. v is float32 or float64, and no number of it is rounded. `digits` allows a
  // Sigma of float32 rows whose error is relative to the largest number of each row, not to each number.
  m.def(
      "npk_product(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor v, int[] first, int[] y_first, "
      "int[] count, float[] scale, bool digits, float[] slope=[], int[] widths=[]) -> Tensor");
  m.def(
      "npk_diag(Tensor words, int[] first, int[] count, float[] scale, ScalarType dtype, float[] slope=[], "
      "int[] widths=[]) -> Tensor");

  // Rows of a and b hold all layers side by side. Layer l is `widths[l]` columns wide.
  m.def("soft_npk_gram(Tensor a, Tensor? b, int[] widths, float[] scale) -> Tensor");
  m.def("soft_npk_gram_backward(Tensor grad, Tensor a, Tensor? b, int[] widths, float[] scale) -> Tensor");

  // Gated layers compute (x W^T + b) * gate. `words` holds one bit per gate; its rows are in the order of x's leading
  // dimensions, and the layer begins at word `first`. If `words` is absent there is no gate. A backward returns a
  // gradient for x if weight is given, for weight if x is given, and for the bias if `bias` is true. A gradient that is
  // not wanted is an empty tensor.
  m.def("gated_linear(Tensor x, Tensor weight, Tensor? bias, Tensor words, int first) -> Tensor");
  m.def("gated_linear_relu(Tensor x, Tensor weight, Tensor? bias) -> (Tensor, Tensor)");
  m.def(
      "gated_linear_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor? words, int first, bool bias) "
      "-> (Tensor, Tensor, Tensor)");

  // Soft gates. The second result is x W^T + b. The backward needs it as `product` for the fourth gradient, that of the
  // gate.
  m.def("gated_linear_soft(Tensor x, Tensor weight, Tensor? bias, Tensor gate) -> (Tensor, Tensor)");
  m.def(
      "gated_linear_soft_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor gate, Tensor? product, bool bias) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // One layer of both networks of a DGN: q = h w_f^T + b_f gates v = z w_v^T + b_v. The results are relu(q), or q if
  // linear_feature; the gated v; and the gates of q as words. The soft op also returns q (empty if q is the first
  // result) and v. If v is absent from its backward, there is no gradient for the feature network.
  // A backward computes both networks in one op, because only such an op sees all four products and can run those of
  // the two networks side by side. Autograd would call the backwards of two ops one after the other.
  m.def(
      "gated_linear_pair(Tensor h, Tensor w_f, Tensor? b_f, Tensor z, Tensor w_v, Tensor? b_v, "
      "bool linear_feature) -> (Tensor, Tensor, Tensor)");
  m.def(
      "gated_linear_pair_backward(Tensor grad_h, Tensor grad_z, Tensor? h, Tensor? w_f, bool b_f, Tensor? z, "
      "Tensor? w_v, bool b_v, Tensor words, bool linear_feature) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_linear_pair_soft(Tensor h, Tensor w_f, Tensor? b_f, Tensor z, Tensor w_v, Tensor? b_v, float beta, "
      "float gain, bool linear_feature) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_linear_pair_soft_backward(Tensor? grad_h, Tensor? grad_z, Tensor q, Tensor? v, Tensor? h, Tensor? w_f, "
      "bool b_f, Tensor? z, Tensor? w_v, bool b_v, float beta, float gain, bool linear_feature) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "gated_linear_pair_out(Tensor h, Tensor w_f, Tensor? b_f, Tensor z, Tensor w_v, Tensor? b_v, bool soft, "
      "float beta, float gain, bool linear_feature, *, Tensor(a!) h_next, Tensor(b!) z_next, Tensor(c!) gates_out) "
      "-> ()");

  // q is (n, positions, channels) with any strides. gate_relu returns relu(q) and the gates of q as words; gate_select
  // returns q with zeros for the gates that are off.
  m.def("gate_relu(Tensor q) -> (Tensor, Tensor)");
  m.def("gate_select(Tensor q, Tensor words, int first) -> Tensor");

  // Returns in how many rows each bit is set, int64 (32 * W). Position 32 * w + b is bit b of word w.
  m.def("gate_counts(Tensor words) -> Tensor");

  // The neural path kernel of convolutional networks. x (n, D) holds the pixels of all inputs. `program` is a list of
  // instructions of 24 ints each (gatedops/ops/conv_program.py), which name columns of x, words and scalars.
  m.def(
      "conv_gram(Tensor x, Tensor words, Tensor? y, Tensor? y_words, int[] program, float[] scalars, ScalarType dtype) "
      "-> Tensor");
}
