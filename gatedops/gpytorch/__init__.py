"""The neural path kernel in GPyTorch: a kernel for Gaussian processes, and the operators that it makes.

npk_kernel has the kernel. npk_linear_operator has its matrices as operators of the library linear_operator, and
opaque_linear_operator those of all other kernels of this package. pairs computes entries one by one. networks finds
out whether a network is fully connected.
"""

from __future__ import annotations

from importlib.util import find_spec

for _name in ("linear_operator", "gpytorch"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(
            f"gatedops.gpytorch needs {_name}, which is not installed: pip install 'gpytorch>=1.13'", name=_name
        )

from gatedops.gpytorch.npk_kernel import NPKKernel  # noqa: E402 (the check comes first)
from gatedops.gpytorch.npk_linear_operator import NPKLinearOperator  # noqa: E402
from gatedops.gpytorch.opaque_linear_operator import OpaqueLinearOperator  # noqa: E402

__all__ = ["NPKKernel", "NPKLinearOperator", "OpaqueLinearOperator"]
