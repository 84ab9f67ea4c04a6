"""Lists the families of ops. A backend proves itself, and is chosen, for a whole family."""

from __future__ import annotations

FAMILIES: dict[str, tuple[str, ...]] = {
    "gates": ("pack_gates", "pack_gates_out", "unpack_gates", "gate_counts"),
    "gram": (
        "gate_overlap",
        "gate_neighbors",
        "npk_diag",
        "npk_gram",
        "npk_gram_out",
        "npk_gram_backward",
        "npk_matvec",
    ),
    "gram_product": ("npk_product",),
    "soft_gram": ("soft_npk_gram", "soft_npk_gram_backward"),
    "conv_gram": ("conv_gram",),
    "gated_linear": (
        "gated_linear",
        "gated_linear_relu",
        "gated_linear_soft",
        "gated_linear_backward",
        "gated_linear_soft_backward",
        "gate_relu",
        "gate_select",
    ),
    "gated_linear_pair": (
        "gated_linear_pair",
        "gated_linear_pair_out",
        "gated_linear_pair_soft",
        "gated_linear_pair_backward",
        "gated_linear_pair_soft_backward",
    ),
}

FAMILY_OF = {op: family for family, ops in FAMILIES.items() for op in ops}
