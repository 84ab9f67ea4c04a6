"""The gates of ReLU networks as first-class data: packed gates, overlap counts and neural path kernels."""

import warnings
from importlib import import_module
from types import ModuleType

# The extension links against torch's libraries, so torch is imported first.
import torch  # noqa: F401

from gatedops import backends, optim, solve  # backends loads the extension, which registers the ops
from gatedops._version import __version__
from gatedops.gatebits import GateBits, pack_gates, unpack_gates
from gatedops.layout import GateLayer
from gatedops.nn import DGN, DLGN, Gate, GateCache, GatedConv2d, GatedLinear, SoftReLU
from gatedops.operators import NPKOperator
from gatedops.ops.gated_linear import gated_linear
from gatedops.ops.gated_linear_pair import gated_linear_pair
from gatedops.ops.gram import npk_diag, npk_gram, npk_matvec
from gatedops.ops.overlap import gate_agreement, gate_hamming, gate_neighbors, gate_overlap
from gatedops.ops.soft_gram import soft_npk_gram
from gatedops.path_kernels.npk import npk
from gatedops.path_kernels.ntk import ntk
from gatedops.path_kernels.path_norm import path_norm
from gatedops.path_kernels.paths import npf, npv
from gatedops.stats import count_regions, gate_stats, naswot_score
from gatedops.trace import fuse_relu, gated_twin, record_gates, unfuse

# dispatch registers the kernels of ops that the modules above define.
from gatedops import dispatch  # isort: skip
from gatedops.ops import flops  # isort: skip

__all__ = [
    "DGN",
    "DLGN",
    "Gate",
    "GateBits",
    "GateCache",
    "GateLayer",
    "GatedConv2d",
    "GatedLinear",
    "NPKOperator",
    "SoftReLU",
    "__version__",
    "backends",
    "count_regions",
    "fuse_relu",
    "gate_agreement",
    "gate_hamming",
    "gate_neighbors",
    "gate_overlap",
    "gate_stats",
    "gated_linear",
    "gated_linear_pair",
    "gated_twin",
    "naswot_score",
    "npf",
    "npk",
    "npk_diag",
    "npk_gram",
    "npk_matvec",
    "npv",
    "ntk",
    "optim",
    "pack_gates",
    "path_norm",
    "record_gates",
    "soft_npk_gram",
    "solve",
    "unfuse",
    "unpack_gates",
]

# Modules that need an optional package; they are imported when they are asked for.
_OPTIONAL = ("gpytorch", "sklearn")
# Old names of modules, which still work for one release.
_MOVED = {"kernels": "path_kernels", "reference_conv": "reference.conv_gram"}


def __getattr__(name: str) -> ModuleType:
    if name in _OPTIONAL:
        return import_module(f"{__name__}.{name}")
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = f"{__name__}.{_MOVED[name]}"
    warnings.warn(
        f"{__name__}.{name} is now {new}; the next release removes the old name: import the new one",
        DeprecationWarning,
        stacklevel=2,
    )
    # Stored, because `from gatedops import name` looks the name up twice and would warn twice.
    globals()[name] = import_module(new)
    return globals()[name]


dispatch.register_kernels()
flops.register()
