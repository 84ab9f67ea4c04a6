"""Every operation of gatedops in plain torch. It is the specification with which tests compare the kernels.

The functions have the same names and keyword arguments as those of the package. They take any float dtype and any
device, and use no compiled code. They are slow and need much memory: gates are unpacked to one number each, and every
matrix of counts is stored. They do not check their arguments; the functions of the package do.
"""

from gatedops.reference.gated_linear import gated_linear, gated_linear_pair
from gatedops.reference.gates import (
    by_position,
    from_positions,
    gate_counts,
    gates_of_layer,
    gates_on,
    pack_gates,
    unpack_gates,
    words_from_bool,
    words_of_layer,
)
from gatedops.reference.gram import (
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    input_gram,
    multipliers,
    npk_diag,
    npk_gram,
    npk_matvec,
    scaled_product,
    soft_norms,
    soft_npk_gram,
    unit_rows,
)

__all__ = [
    "by_position",
    "from_positions",
    "gate_agreement",
    "gate_counts",
    "gate_hamming",
    "gate_neighbors",
    "gate_overlap",
    "gated_linear",
    "gated_linear_pair",
    "gates_of_layer",
    "gates_on",
    "input_gram",
    "multipliers",
    "npk_diag",
    "npk_gram",
    "npk_matvec",
    "pack_gates",
    "scaled_product",
    "soft_norms",
    "soft_npk_gram",
    "unit_rows",
    "unpack_gates",
    "words_from_bool",
    "words_of_layer",
]
