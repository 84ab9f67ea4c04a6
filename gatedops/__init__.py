"""The gates of ReLU networks as first-class data: packed gates, overlap counts and neural path kernels."""

import torch  # noqa: F401  (before the extension: it links against torch's libraries)

from gatedops import backends  # loads the extension, which registers the ops
from gatedops._version import __version__
from gatedops.gatebits import GateBits, pack_gates, unpack_gates
from gatedops.layout import GateLayer
from gatedops.ops.gram import npk_diag, npk_gram, npk_matvec
from gatedops.ops.overlap import gate_agreement, gate_neighbors, gate_overlap
from gatedops.ops.soft_gram import soft_npk_gram

__all__ = [
    "GateBits",
    "GateLayer",
    "__version__",
    "backends",
    "gate_agreement",
    "gate_neighbors",
    "gate_overlap",
    "npk_diag",
    "npk_gram",
    "npk_matvec",
    "pack_gates",
    "soft_npk_gram",
    "unpack_gates",
]
