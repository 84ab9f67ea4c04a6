// Every op schema of gatedops, once. Kernels register themselves per device in csrc/<device>/.
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

  // agree_widths: empty, or the gates of each layer, to count those that agree (both on or both off).
  m.def(
      "gate_overlap(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "int[] agree_widths) -> Tensor");
  m.def(
      "gate_neighbors(Tensor words, Tensor? y_words, int[] first, int[] y_first, int[] count, "
      "float[] scale, int k, ScalarType dtype) -> (Tensor, Tensor)");
  m.def(
      "npk_gram(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, int[] first, int[] y_first, "
      "int[] count, float[] scale, ScalarType dtype) -> Tensor");
  m.def(
      "npk_gram_out(Tensor? x, Tensor words, Tensor? y, Tensor? y_words, int[] first, int[] y_first, "
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
}
