"""The neural path kernel of packed gates as an operator."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gatedops.arrays import as_tensor
from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer
from gatedops.operators.base import KernelOperator, require_symmetric
from gatedops.operators.parts import Part, parts_of_kernel
from gatedops.operators.sigma import sigma_of
from gatedops.operators.tiled import ModelOperator, SoftOperator
from gatedops.operators.tiles import Index, Tiles, cache_limit
from gatedops.ops.checks import require_float64
from gatedops.ops.differentiable import is_recorded
from gatedops.ops.gate_counts import on_in_both
from gatedops.ops.gram_args import factors_of, layout_of, require_inputs, require_result_dtype, slopes_of, with_widths
from gatedops.ops.gram_range import check_range, passes_of, sign_of, squared_norms
from gatedops.ops.soft_gram import sides_of
from gatedops.path_kernels.images import ImageKernel
from gatedops.path_kernels.problem import problem_of
from gatedops.tables import listed

# The rows and columns of a tile of a stored Gram.
_EDGE = 2048
# "auto" stores the Gram of floats with at least this many columns: with fewer, computing is cheaper than reading.
_STORED_COLUMNS = 128
# This many words and inputs of pairs of points are read at a time.
_PAIRED = 1 << 20


class NPKOperator(KernelOperator):
    """The Gram of :func:`gatedops.npk_gram` as an operator: it multiplies vectors, and gives entries, without storing
    the Gram.

    ``op @ v`` is K v for a tensor or numpy array v, ``(m,)`` or ``(m, c)``, of float32 or float64; the result has the
    dtype of v, and its sums are in float64. It is differentiable in v, and in x and y if they need a gradient, to any
    order; then it computes like :func:`gatedops.npk_matvec`. Entries (``op[rows, cols]``, ``diag()``, ``columns()``,
    ``to_dense()``) are not differentiable.

    **Sigma**, the inner products of x, is most of the cost of a product with few columns. The constructor chooses how
    to compute it (`sigma` says how), and copies x if it changes the form of x. In each form the error is at most about
    that of float32 products:

    - uint8 x: exact products of bytes.
    - floats that all are 0, 1, ... 255 times one number, such as images divided by 255: exact products of bytes, times
      that number squared.
    - float32 results, and an x of at most half as many dimensions as columns (and at least twice as many rows as
      columns): products of its coordinates in an orthonormal basis.
    - else products of floats. For float32 results they may be computed from digits of 8 bits.

    An x that needs a gradient is used as it is, and may change between products. Any other x must not.

    Args:
        bits, x, y_bits, y: as in npk_gram: the gates and inputs of the rows, and of the columns if they are others.
            The inputs must be finite.
        scale, slope, normalize, dtype: as in npk_gram. `dtype` is that of the entries.
        cache: whether the Gram may be stored by the first product, for later products to read. Stored or not, a product
            is the same up to the rounding of the entries to `dtype` and of the sums. "none": never. "auto": if x holds
            floats (of any form but bytes) with at least 128 columns, so that reading is cheaper than computing, and the
            Gram takes at most a quarter of the memory that is free when the operator is made (1 GiB if the system does
            not say how much is free). A number: if the Gram takes at most this many bytes. A symmetric Gram takes half
            the bytes of a whole one. If x needs a gradient, nothing is stored.

    Attributes:
        sigma: how Sigma is computed; `sigma.kind` is "none", "bytes", "multiples", "factor" or "floats".
        stores: whether products store the Gram.
        layers: of the gates that make the kernel.
        exponent: the kernel of a model (:meth:`of`) is the operator times ``2 ** exponent``; otherwise 0.

    Raises:
        TypeError, ValueError: as in npk_gram, before any work; and if x or y has infinite values or NaN.
    """

    def __init__(
        self,
        bits: GateBits,
        x: Tensor | None = None,
        y_bits: GateBits | None = None,
        y: Tensor | None = None,
        *,
        scale: str | Sequence[float] = "width",
        normalize: bool = False,
        slope: float | Sequence[float] = 0.0,
        dtype: torch.dtype = torch.float32,
        cache: str | int = "auto",
    ) -> None:
        x, y = (None if side is None else as_tensor(side, name) for side, name in ((x, "x"), (y, "y")))
        layout_of(bits, y_bits)
        require_result_dtype(dtype, bits)
        require_float64(bits.device, "bits")
        slopes = slopes_of(slope, bits, dtype)
        factors = factors_of(scale, bits, dtype, slopes, normalize=normalize)
        require_inputs(x, bits, y, y_bits)
        cache_limit(cache, bits.device)  # Checks it before any work.
        if not normalize:
            check_range([bits, y_bits], [x, y], factors, dtype, "normalize=True", slopes=slopes)
        self.shape = (bits.n, bits.n if y_bits is None else y_bits.n)
        self.dtype, self.device, self.symmetric = dtype, bits.device, y_bits is None
        self.exponent = 0
        self._bits, self._y_bits, self._factors, self._slopes = bits, y_bits, factors, slopes
        self._normalize, self._scale = bool(normalize), scale
        self._given, self._cache = (x, y), cache
        self.sigma = sigma_of(x, y, dtype, self._fits)
        self._prepare()

    def _prepare(self) -> None:
        """Makes the parts, and decides whether the Gram is stored. ValueError if the inputs leave the range of the
        dtype when rows are normalized."""
        if self._normalize and self.dtype == torch.float32 and self.sigma.kind in ("factor", "floats"):
            # Sigma has them in float32, in which all inputs of a side could be zeros or infinite.
            for side in self._given:
                if side is not None and side.dtype == torch.float64:
                    passes_of([self._bits], [squared_norms(side)], self.dtype, self._slopes)
        self._changes = any(side is not None and side.requires_grad for side in self._given)
        with torch.no_grad():
            self._kept_parts = self._made_parts()
        limit = cache_limit(self._cache, self.device)
        tiles = self._tiles_of(limit)
        columns = 0 if self.sigma.x is None or self.sigma.x.dtype == torch.uint8 else self.sigma.x.shape[1]
        is_worth = not self._changes and (self._cache != "auto" or columns >= _STORED_COLUMNS)
        self.stores = is_worth and 0 < tiles.nbytes <= limit
        # More than one part cannot be multiplied without their entries.
        self._tiles = tiles if self.stores else self._tiles_of(0) if len(self._kept_parts) > 1 else None

    @staticmethod
    def of(
        model: nn.Module,
        x: Tensor | np.ndarray,
        y: Tensor | np.ndarray | None = None,
        *,
        kernel: str = "npk",
        sigma: float | Sequence[float] = 1.0,
        bias: str = "ignore",
        output: int | str | None = None,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        cache: str | int = "auto",
        max_work: float | None = 1e12,
        progress: bool | None = None,
    ) -> NPKOperator | ModelOperator:
        """Returns the kernel of a network, as :func:`gatedops.npk` computes it, as an operator. The gates are recorded
        once, here.

        For a fully connected network the result is an NPKOperator. For any other network it is a ModelOperator: its
        entries are computed in tiles when they are needed, those of a symmetric kernel once for both places, and kept
        while there is room. A pass that computes tiles shows a bar. Unlike npk, it does not warn of rows whose entries
        are too small for `dtype`.

        Args:
            model, x, y, kernel, sigma, bias, output, batch_size, dtype, max_work, progress: as in npk.
            cache: how many bytes of tiles may be kept. "auto": a quarter of the memory that is free now. "none": 0.
                For a fully connected network: as in :class:`NPKOperator`.

        Returns:
            The kernel times ``2 ** -exponent``; `exponent` is an attribute of the operator.

        Raises:
            TypeError, ValueError: as in npk and :class:`NPKOperator`.
        """
        cache_limit(cache, torch.device("cpu"))  # Checks it before any work.
        problem = problem_of(
            model,
            x,
            y,
            kernel=kernel,
            sigma=sigma,
            bias=bias,
            output=output,
            batch_size=batch_size,
            dtype=dtype,
            max_work=max_work,
            progress=progress,
        )
        made, bits, y_bits = problem.made, problem.bits, problem.y_bits
        if isinstance(made, ImageKernel):
            pairs = made.pairs(problem.x, bits, problem.y, y_bits, dtype)
            return ModelOperator(pairs, made.exponent, made.what, cache_limit(cache, pairs.device), progress)
        if bits is None:
            raise RuntimeError("a fully connected network with hidden layers has gates")
        rows, y_rows = problem.x.flatten(1), None if problem.y is None else problem.y.flatten(1)
        operator = NPKOperator(
            bits, rows, y_bits, y_rows, scale=made.scales, slope=made.slopes, dtype=dtype, cache=cache
        )
        operator.exponent = made.exponent
        return operator

    @staticmethod
    def soft(
        gates: Sequence[Tensor],
        x: Tensor | None = None,
        y_gates: Sequence[Tensor] | None = None,
        y: Tensor | None = None,
        *,
        scale: str | Sequence[float] = "width",
        normalize: bool = False,
        dtype: torch.dtype = torch.float32,
        cache: str | int = "auto",
    ) -> SoftOperator:
        """Returns the kernel of real-valued gates (DLGN, DLNPF), as :func:`gatedops.soft_npk_gram` computes it, as an
        operator. It computes in tiles, and is not differentiable in the gates or inputs.

        Args:
            gates, x, y_gates, y, scale, normalize, dtype: as in soft_npk_gram. Gates and inputs are copied.
            cache: how many bytes of tiles may be kept. "auto": a quarter of the memory that is free now. "none": 0.

        Raises:
            TypeError, ValueError: as in soft_npk_gram, before any work.
        """
        with torch.no_grad():
            left, right, widths, factors = sides_of(x, gates, y, y_gates, scale, dtype, normalize=normalize)
        require_float64(left.device, "gates")
        for side, name in ((left, "gates, x"), (right, "y_gates, y")):
            if side is not None and not bool(torch.isfinite(side).all()):
                raise ValueError(f"{name}: have infinite values or NaN in {dtype}, need finite numbers")
        return SoftOperator(left, right, widths, factors, cache_limit(cache, left.device))

    def arguments(self) -> dict[str, Any]:
        """Returns arguments by name that make an operator of the same entries. `scale` and `slope` are numbers."""
        x, y = self._given
        return {
            "bits": self._bits,
            "x": x,
            "y_bits": self._y_bits,
            "y": y,
            "scale": list(self._factors),
            "slope": list(self._slopes) or 0.0,
            "normalize": self._normalize,
            "dtype": self.dtype,
            "cache": self._cache,
        }

    def product(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            if self._tiles is not None:
                return self._tiles.product(v)
            return self._parts()[0].product(v, self.dtype, digits=self.sigma.digits)

    def diag(self) -> Tensor:
        require_symmetric(self)
        with torch.no_grad():
            if not self._normalize:
                return self._parts()[0].diag(self.dtype)
            on = [part.left.root != 0 for part in self._parts() if part.left.root is not None]
            return torch.stack(on).all(0).to(self.dtype) * (sign_of(self._factors) or 1.0)

    def block(self, rows: Index, cols: Index) -> Tensor:
        return self._computed(rows, cols) if self._tiles is None else self._tiles.block(rows, cols)

    @property
    def layers(self) -> tuple[GateLayer, ...]:
        """The layers whose gates make the kernel."""
        return self._bits.layers

    def shared_gates(self, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what entries are made of, for p pairs of a row and a column.

        Args:
            rows, cols: int64 ``(p,)``, on the operator's device.

        Returns:
            How many gates of each layer are on in both inputs, int32 ``(p, L)``, and Sigma, float64 ``(p,)``, or None
            if the kernel is Lambda alone.
        """
        x, y = self._given
        y_bits, y = (self._bits, x) if self._y_bits is None else (self._y_bits, y)
        size = self._bits.words.shape[1] + (0 if x is None else x.shape[1])
        counts, sums = [], []
        for i, j in zip(*(index.split(max(1, _PAIRED // size)) for index in (rows, cols)), strict=True):
            counts.append(on_in_both(self._bits[i], y_bits[j]).T)
            if x is not None and y is not None:
                sums.append((x.detach()[i].to(torch.float64) * y.detach()[j].to(torch.float64)).sum(1))
        return torch.cat(counts), torch.cat(sums) if sums else None

    @property
    def T(self) -> NPKOperator:
        if self._y_bits is None:
            return self
        other = copy.copy(self)
        other.shape = (self.shape[1], self.shape[0])
        other._bits, other._y_bits, other._given = self._y_bits, self._bits, self._given[::-1]
        other.sigma = replace(self.sigma, x=self.sigma.y, y=self.sigma.x)
        other._kept_parts = [part.T for part in self._kept_parts]
        other._tiles = None if self._tiles is None else self._tiles.T
        return other

    def with_dtype(self, dtype: torch.dtype) -> NPKOperator:
        """Returns the operator of the same kernel with entries in another dtype. Bytes with a scale remain, so that the
        inputs are the same; any other form of Sigma is chosen anew."""
        if dtype == self.dtype:
            return self
        require_result_dtype(dtype, self._bits)
        if not self._normalize:
            sides, inputs = [self._bits, self._y_bits], list(self._given)
            check_range(sides, inputs, self._factors, dtype, "normalize=True", slopes=self._slopes)
        other = copy.copy(self)
        other.dtype = dtype
        if self.sigma.kind in ("factor", "floats") or not other._fits(self.sigma.scale**2):
            other.sigma = sigma_of(*self._given, dtype, other._fits)
        other._prepare()
        return other

    def _times(self, v: Tensor) -> Tensor:
        inputs = [side for side in (self.sigma.x, self.sigma.y) if side is not None]
        if not is_recorded(v, *inputs):
            return self.product(v)
        parts = self._made_parts()
        if len(parts) == 1:
            return parts[0].matvec(v, self.dtype)
        grams = [part.gram(slice(None), slice(None), self.dtype) for part in parts]
        return math.prod(grams[1:], start=grams[0]) @ v.to(self.dtype)

    def _computed(self, rows: Index, cols: Index) -> Tensor:
        with torch.no_grad():
            grams = [part.gram(rows, cols, self.dtype) for part in self._parts()]
            for other in grams[1:]:
                grams[0].mul_(other)
            return grams[0]

    def _parts(self) -> list[Part]:
        """The parts for the inputs as they are now."""
        return self._made_parts() if self._changes and self._normalize else self._kept_parts

    def _made_parts(self) -> list[Part]:
        arguments = (self._bits, self._y_bits, self.sigma, self._factors, self._slopes, self.dtype)
        return parts_of_kernel(*arguments, normalize=self._normalize)

    def _tiles_of(self, limit: int) -> Tiles:
        return Tiles(
            self.shape,
            self.dtype,
            self.device,
            symmetric=self.symmetric,
            compute=self._computed,
            edge=_EDGE,
            limit=limit,
            what="kernel",
        )

    def _fits(self, number: float) -> bool:
        """Whether Lambda stays in the range of the dtype if the last layer's factor is multiplied by the number."""
        if self._normalize or 0.0 in self._factors:
            return True
        # Smaller entries than the least of the diagonal may lose digits below this, but they are so small beside it.
        info = torch.finfo(self.dtype)
        least, largest = info.tiny / info.eps, info.max * info.eps
        numbers = [number * abs(self._factors[-1])]
        for bits in (self._bits, self._y_bits):
            if bits is not None:
                first, _, count = layout_of(bits, None)
                factors, sloped = [abs(factor) for factor in self._factors], with_widths(self._slopes, bits)
                diag = torch.ops.gatedops.npk_diag(bits.words, first, count, factors, torch.float64, *sloped)
                numbers += [number * float(end) for end in diag[diag > 0].aminmax()] if bool((diag > 0).any()) else []
        return least <= min(numbers) and max(numbers) <= largest

    def _told(self) -> list[tuple[str, str]]:
        told = [("layers", listed(self._bits.widths))]
        told += [("scale", self._scale if isinstance(self._scale, str) else listed(self._factors))]
        told += [("slope", listed(self._slopes))] if self._slopes else []
        told += [("normalized", "yes")] if self._normalize else []
        told += [("Sigma", self.sigma.text)]
        if self._tiles is None or not self.stores:
            return [*told, ("Gram", "not stored")]
        state = "stored" if self._tiles.kept else "will be stored by the first product"
        return [*told, ("Gram", f"{state}, {self._tiles.nbytes / (1 << 30):.2f} GiB")]
