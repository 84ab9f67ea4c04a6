"""Calls cuBLASLt through ctypes: a layer and its gates in one call, the mask of the backward in another's epilogue.

The epilogue RELU_AUX_BIAS writes relu(x W^T + b) and one bit per gate. DRELU multiplies the gradient that leaves the
layer above by those bits. Matrices are row-major here and column-major in cuBLASLt: y (n, w) = x W^T is y^T = W x^T, a
(w, n) matrix with leading dimension w.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

COMPUTE_32F, COMPUTE_32F_FAST_TF32, R_32F = 68, 77, 0
DTYPES = {torch.float32: R_32F, torch.float16: 2, torch.bfloat16: 14}
TRANSA, TRANSB, EPILOGUE, BIAS, BIAS_TYPE, AUX, AUX_LD = 3, 4, 7, 8, 26, 11, 12
RELU_AUX_BIAS, DRELU, PLAIN = 2 | 128 | 4, 8 | 128, 1
MAX_WORKSPACE = 1
WORKSPACE = 64 << 20
NAMES = ("libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so")


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Returns cuBLASLt, which torch loads for its first product on a GPU; None if it cannot be reached."""
    torch.zeros(1, device="cuda").unsqueeze(0) @ torch.zeros(1, 1, device="cuda")
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _call(name: str, *args: object) -> None:
    """Calls cublasLtNAME; raises RuntimeError if it fails."""
    status = getattr(library(), f"cublasLt{name}")(*args)
    if status:
        raise RuntimeError(f"cublasLt{name} failed with status {status}")


def _created(name: str, *args: object) -> ctypes.c_void_p:
    """Returns what cublasLtNAME makes; its first argument is the address of the pointer."""
    made = ctypes.c_void_p()
    _call(name, ctypes.byref(made), *args)
    return made


def _set(name: str, of: ctypes.c_void_p, attribute: int, value: ctypes._SimpleCData) -> None:
    _call(name, of, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


@cache
def _handle() -> ctypes.c_void_p:
    return _created("Create")


@cache
def _workspace() -> Tensor:
    return torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")


class Product:
    """Plans out (n, m) = left @ right with an epilogue once for fixed tensors; a call runs it.

    left (n, k) and right (k, m) are each a contiguous matrix or the transpose of one. aux, uint8 (n, m / 8), holds the
    bits of `out`, bit j of a row in byte j // 8: RELU_AUX_BIAS writes them, DRELU reads them.
    """

    def __init__(
        self, left: Tensor, right: Tensor, out: Tensor, epilogue: int = PLAIN, bias: Tensor | None = None,
        aux: Tensor | None = None,
    ):  # fmt: skip
        self.kept = (left, right, out, bias, aux)
        kind = DTYPES[out.dtype]
        tf32 = out.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        self.description = _created("MatmulDescCreate", COMPUTE_32F_FAST_TF32 if tf32 else COMPUTE_32F, R_32F)
        attributes: dict[int, ctypes._SimpleCData] = {
            TRANSA: ctypes.c_int32(int(not right.is_contiguous())),
            TRANSB: ctypes.c_int32(int(not left.is_contiguous())),
            EPILOGUE: ctypes.c_int32(epilogue),
        }
        if bias is not None:
            attributes |= {BIAS: ctypes.c_void_p(bias.data_ptr()), BIAS_TYPE: ctypes.c_int32(kind)}
        if aux is not None:
            attributes |= {AUX: ctypes.c_void_p(aux.data_ptr()), AUX_LD: ctypes.c_int64(8 * aux.shape[1])}
        for attribute, value in attributes.items():
            _set("MatmulDescSetAttribute", self.description, attribute, value)
        self.layouts = [_layout(t, kind) for t in (right, left, out)]
        self.algorithm = self._best()

    def _best(self) -> _Heuristic:
        preference, found, count = _created("MatmulPreferenceCreate"), _Heuristic(), ctypes.c_int()
        _set("MatmulPreferenceSetAttribute", preference, MAX_WORKSPACE, ctypes.c_uint64(WORKSPACE))
        a, b, c = self.layouts
        results = (1, ctypes.byref(found), ctypes.byref(count))
        _call("MatmulAlgoGetHeuristic", _handle(), self.description, a, b, c, c, preference, *results)
        if count.value == 0:
            raise RuntimeError("cuBLASLt has no algorithm for this product")
        return found

    def __call__(self) -> None:
        left, right, out, _, _ = self.kept
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        a, b, c = self.layouts

        def at(t: Tensor) -> ctypes.c_void_p:
            return ctypes.c_void_p(t.data_ptr())

        _call(
            "Matmul", _handle(), self.description, ctypes.byref(one), at(right), a, at(left), b, ctypes.byref(zero),
            at(out), c, at(out), c, ctypes.byref(self.algorithm.algorithm), at(_workspace()),
            ctypes.c_size_t(WORKSPACE), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream),
        )  # fmt: skip


def _layout(t: Tensor, kind: int) -> ctypes.c_void_p:
    """Returns the layout of a row-major (r, c) tensor, which is a column-major (c, r) matrix."""
    rows, cols = t.shape if t.is_contiguous() else t.T.shape
    return _created("MatrixLayoutCreate", kind, ctypes.c_uint64(cols), ctypes.c_uint64(rows), ctypes.c_int64(cols))
