"""The gates of ReLU networks as first-class data: packed gates, overlap counts and neural path kernels."""

import torch  # noqa: F401  (before the extension: it links against torch's libraries)

from gatedops import backends, cuda_library  # loads the extension, which registers the ops
from gatedops._version import __version__
from gatedops.gatebits import GateBits, pack_gates, unpack_gates
from gatedops.layout import GateLayer
from gatedops.nn import Gate, GatedConv2d, GatedLinear
from gatedops.ops.gated_linear import gated_linear
from gatedops.ops.gated_linear_pair import gated_linear_pair
from gatedops.ops.gram import npk_diag, npk_gram, npk_matvec
from gatedops.ops.overlap import gate_agreement, gate_neighbors, gate_overlap
from gatedops.ops.soft_gram import soft_npk_gram
from gatedops.trace import fuse_relu, gated_twin, record_gates

__all__ = [
    "Gate",
    "GateBits",
    "GateLayer",
    "GatedConv2d",
    "GatedLinear",
    "__version__",
    "backends",
    "fuse_relu",
    "gate_agreement",
    "gate_neighbors",
    "gate_overlap",
    "gated_linear",
    "gated_linear_pair",
    "gated_twin",
    "npk_diag",
    "npk_gram",
    "npk_matvec",
    "pack_gates",
    "record_gates",
    "soft_npk_gram",
    "unpack_gates",
]

if backends.chosen_backend()[0] == "cuda":
    cuda_library.load()
    backends.add_cuda_ops(cuda_library.OPS)

if backends.chosen_backend()[0] == "triton" or (
    backends.chosen_backend()[0] == "cuda" and backends.missing_for("triton") is None
):
    from gatedops.triton import register

    register.register(taken=backends.cuda_ops())
