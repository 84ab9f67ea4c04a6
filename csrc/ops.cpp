// Every op schema of gatedops, once. The kernels of csrc/<family>/cpu/ register themselves for these ops; those of
// csrc/<family>/cuda/ do so in the namespace gatedops_cuda, which gets the same schemas
// (gatedops/backends/cuda_library.py), because a kernel for GPUs has to be chosen first.
//
// Conventions: `words` is (n, W) int32, bit j of a layer is bit j % 32 of word j // 32. A layer is
// named by the index of its first word in a row and the number of words it uses: `first`, `count`
// (and `y_first` on the side of y, whose rows may be laid out differently). An absent y_words means
// the symmetric problem: y = x, and each unordered pair of rows is computed once.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(gatedops, m) {
  m.def("pack_gates(Tensor q) -> Tensor");
  m.def("pack_gates_out(Tensor q, *, Tensor(a!) out) -> ()");
  m.def("unpack_gates(Tensor words, int positions, int channels) -> Tensor");

  // measure: counts the gates that are on for both rows of a pair ("both"), those that are the same, on or off
  // ("agree"), or those that are not ("differ"). widths: the gates of each layer.
  m.def(
      "gate_overlap(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "int[] widths, str measure) -> Tensor");
  m.def(
      "gate_neighbors(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "float[] scale, int k, ScalarType dtype) -> (Tensor, Tensor)");
  // factor (n) and y_factor (m), float64, both or neither, both only with y_words: K_ij * (factor_i * y_factor_j).
  m.def(
      "npk_gram(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor? factor, Tensor? y_factor, int[] first, "
      "int[] y_first, "
      "int[] count, float[] scale, ScalarType dtype) -> Tensor");
  m.def(
      "npk_gram_out(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor? factor, Tensor? y_factor, int[] "
      "first, int[] y_first, "
      "int[] count, float[] scale, *, Tensor(a!) out) -> ()");
  m.def(
      "npk_gram_backward(Tensor grad, Tensor words, Tensor y, Tensor? y_words, int[] first, "
      "int[] y_first, int[] count, float[] scale) -> Tensor");
  m.def(
      "npk_matvec(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, Tensor v, int[] first, "
      "int[] y_first, int[] count, float[] scale) -> Tensor");
  m.def("npk_diag(Tensor words, int[] first, int[] count, float[] scale, ScalarType dtype) -> Tensor");

  // Rows of a and b hold all layers side by side, layer l `widths[l]` columns wide.
  m.def("soft_npk_gram(Tensor a, Tensor? b, int[] widths, float[] scale) -> Tensor");
  m.def("soft_npk_gram_backward(Tensor grad, Tensor a, Tensor? b, int[] widths, float[] scale) -> Tensor");

  // Gated layers, (x W^T + b) * gate. `words` holds one bit per gate, rows in the order of x's leading dimensions;
  // the layer begins at word `first`. A backward returns a gradient for x where weight is given, for weight where x
  // is given, for the bias where `bias` is true, and else an empty tensor in its place. words absent: no gate.
  m.def("gated_linear(Tensor x, Tensor weight, Tensor? bias, Tensor words, int first) -> Tensor");
  m.def("gated_linear_relu(Tensor x, Tensor weight, Tensor? bias) -> (Tensor, Tensor)");
  m.def(
      "gated_linear_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor? words, int first, bool bias) "
      "-> (Tensor, Tensor, Tensor)");

  // Soft gates. The second result is x W^T + b; the fourth gradient, for the gate, wants it as `product`.
  m.def("gated_linear_soft(Tensor x, Tensor weight, Tensor? bias, Tensor gate) -> (Tensor, Tensor)");
  m.def(
      "gated_linear_soft_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor gate, Tensor? product, bool bias) "
      "-> (Tensor, Tensor, Tensor, Tensor)");

  // One layer of both networks of a DGN: q = h w_f^T + b_f gates v = z w_v^T + b_v. Results: relu(q), or q where
  // linear_feature; the gated v; the gates of q as words. Soft: also q (empty where it is the first result) and v.
  // v absent from a backward: no gradient for the feature network.
  // A backward computes both networks in one op, because it alone sees all four products and can run those of the two
  // networks side by side; autograd would call the backwards of two ops one after the other.
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

  // q (n, positions, channels), any strides: relu(q) and its gates as words; and q where given gates are on.
  m.def("gate_relu(Tensor q) -> (Tensor, Tensor)");
  m.def("gate_select(Tensor q, Tensor words, int first) -> Tensor");

  // In how many rows each bit is set, int64 (32 * W): position 32 * w + b is bit b of word w.
  m.def("gate_counts(Tensor words) -> Tensor");

  // The neural path kernel of convolutional networks. x (n, D) holds the pixels of all inputs; program is instructions
  // of 23 ints (gatedops/ops/conv_program.py) that name columns of x, words and scalars.
  m.def(
      "conv_gram(Tensor x, Tensor words, Tensor? y, Tensor? y_words, int[] program, float[] scalars, ScalarType dtype) "
      "-> Tensor");
}
