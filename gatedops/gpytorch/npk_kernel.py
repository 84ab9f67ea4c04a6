"""The neural path kernel of a network as a kernel of GPyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from gpytorch.kernels import Kernel
from linear_operator import LinearOperator, to_dense, to_linear_operator
from torch import Tensor, nn

from gatedops.gatebits import GateBits
from gatedops.gpytorch.networks import columns_of, require_fit, slopes_of_dense
from gatedops.gpytorch.npk_linear_operator import NPKLinearOperator
from gatedops.layout import GateLayer
from gatedops.operators import NPKOperator
from gatedops.operators.tiles import cache_limit
from gatedops.ops.checks import require_dtype
from gatedops.ops.gram_args import listed_factors, require_scale
from gatedops.scalars import whole_number
from gatedops.trace import record_gates
from gatedops.trace.batches import require_count
from gatedops.trace.checks import devices_of, evaluating, require_device, require_model, require_sizes
from gatedops.trace.naming import naming

_DTYPES = (torch.float32, torch.float64)


class NPKKernel(Kernel):
    """The neural path kernel of a ReLU network, ``Sigma * prod_l scale_l <G_l, G'_l>`` (docs/math.md, section 2), for
    Gaussian processes in GPyTorch and BoTorch. It is :func:`gatedops.npk` of the network, up to a constant factor that
    depends on the widths alone; a LeakyReLU has its slope in place of a gate that is off.

    Each call records the gates of its inputs with the network, which is fixed: the kernel keeps a copy of it, whose
    parameters need no gradient. The copy moves with the kernel (``.double()``, ``.to(device)``) and is part of its
    state_dict. The matrix is an :class:`NPKLinearOperator` and is not stored: conjugate gradients need only its
    products, also of 60,000 points. GPyTorch takes them for more points than ``gpytorch.settings.max_cholesky_size``.

    The kernel has no lengthscale and no parameter to train, so put it into a ScaleKernel. It takes the usual options
    and combinations of kernels: active_dims, sums, products (which store the matrix), batches ``(..., n, d)``, whose
    matrices are computed one after another.

    **Derivatives** in the inputs are those of Sigma, with the gates held fixed: as a function of one input, the kernel
    is linear wherever no gate changes, and it may jump where one does. Optimizers of acquisition functions get this
    derivative. With ``sigma=False`` it is zero, and there is none with `input_shape`.

    Args:
        net: any module that :func:`gatedops.npk` takes; ``net(x)`` is called with ``(n, d)``. It is a chain of Linear
            layers with one ReLU or LeakyReLU between every two (batch norms and dropout may stand between them), or
            `input_shape` is given.
        sigma: whether the inner products of the inputs are a factor. False: the kernel is that of the gates alone,
            Lambda.
        normalize: divide by ``sqrt(K_ii K_jj)``.
        scale: the multiplier of each layer, as in :func:`gatedops.npk_gram`.
        input_shape: the shape of one input of a network that is not such a chain, because it has convolutions, pools
            or skip connections: ``(d,)``, or another, such as ``(1, 8, 8)``, to which the rows of x are reshaped. The
            kernel is what :func:`gatedops.npk` returns for the network. It needs ``sigma=True``, ``normalize=False``
            and ``scale="width"``.
        batch_size: inputs at a time, when gates are recorded.
        cache: whether products may store the matrix, as in :class:`gatedops.NPKOperator`; "none": never. With
            `input_shape`, "none" computes each entry anew for every product.
        **options: of gpytorch.kernels.Kernel, such as active_dims.

    Raises:
        TypeError, ValueError: an argument has another form, or the network begins with a Linear layer and is not a
            chain that the kernel takes. Calls raise them for another such network, and for inputs that the network does
            not take, that are on another device, or whose dtype is neither float32 nor float64.
    """

    has_lengthscale = False
    is_stationary = False

    def __init__(
        self,
        net: nn.Module,
        *,
        sigma: bool = True,
        normalize: bool = False,
        scale: str | Sequence[float] = "width",
        input_shape: Sequence[int] | None = None,
        batch_size: int = 256,
        cache: str | int = "none",
        **options: Any,
    ) -> None:
        require_model(net, "net")
        with naming({"model": "net"}):
            require_sizes(net)
        shape = None if input_shape is None else _shape_of(input_shape)
        if shape is not None and (not sigma or normalize or scale != "width"):
            raise ValueError(
                "input_shape: got one beside sigma=False, normalize=True or scale, which are options of the kernel of"
                " fully connected networks: leave them out, or leave input_shape out"
            )
        require_scale(scale)
        cache_limit(cache, torch.device("cpu"))  # Checks it.
        super().__init__(**options)
        self.net = copy.deepcopy(net).requires_grad_(False)
        self._sigma, self._input_shape, self._cache = bool(sigma), shape, cache
        self._normalize, self._scale, self._batch_size = bool(normalize), scale, require_count(batch_size)
        self._known_slopes: list[float] | None = None
        columns = columns_of(net)
        if shape is not None:
            require_fit(self.net, shape)
        elif columns is not None:
            self._slopes(columns)

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor | LinearOperator:
        """Returns the kernel of two sets of inputs as GPyTorch asks for it.

        Args:
            x1, x2: ``(..., n, d)`` and ``(..., m, d)``, of one dtype.
            diag: return the diagonal, ``(..., n)``, alone.
        """
        if last_dim_is_batch:
            raise NotImplementedError("last_dim_is_batch: NPKKernel takes all columns of x at once: leave it out")
        self._check(x1, x2)
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], self.batch_shape)
        if not (x1.shape[-2] and x2.shape[-2]):
            empty = x1.new_zeros(*batch, x1.shape[-2], x2.shape[-2])
            return empty.diagonal(dim1=-1, dim2=-2) if diag else to_linear_operator(empty)
        # If x is other than itself detached, its gradient is that of one side.
        is_fixed = not (x1.requires_grad or x2.requires_grad)
        is_same = x1 is x2 or (is_fixed and x1.shape == x2.shape and torch.equal(x1, x2))
        sides = (x1,) if is_same else (x1, x2)
        make = self._of_gates if self._input_shape is None else self._of_network
        matrix = make([side.expand(*batch, *side.shape[-2:]) for side in sides])
        return matrix.diagonal(dim1=-1, dim2=-2) if diag else matrix

    def record_gates(self, x: Tensor) -> GateBits:
        """Returns the gates of inputs ``(n, d)``. They are recorded in the dtype of the network."""
        return self._recorded(x, "x")

    def _recorded(self, x: Tensor, name: str) -> GateBits:
        with naming({"model": "net", "data": name}):
            return record_gates(
                self.net,
                self._as_network_input(x),
                batch_size=self._batch_size,
                activations="piecewise",
                progress=False,
            )

    def _slopes(self, columns: int) -> list[float]:
        """Returns the slope of each activation where its gates are off. The network is examined once."""
        if self._known_slopes is None:
            slopes = slopes_of_dense(self.net, columns)
            if not isinstance(self._scale, str):
                listed_factors(self._scale, len(slopes))  # Checks their number.
            self._known_slopes = slopes
        return self._known_slopes

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_slopes = None  # Slopes may be parameters.

    def _of_gates(self, sides: list[Tensor]) -> NPKLinearOperator:
        parts: list[Tensor] = []
        layers: tuple[GateLayer, ...] = ()
        slopes = self._slopes(sides[0].shape[-1])
        for x, name in zip(sides, ("x1", "x2"), strict=False):
            bits = self._recorded(x.reshape(-1, x.shape[-1]), name)
            layers = bits.layers
            parts += [x if self._sigma else x[..., :0], bits.words.reshape(*x.shape[:-1], -1)]
        return NPKLinearOperator(
            *parts, layers=layers, scale=self._scale, slope=slopes, normalize=self._normalize, cache=self._cache
        )

    def _of_network(self, sides: list[Tensor]) -> LinearOperator:
        if torch.is_grad_enabled() and any(x.requires_grad for x in sides):
            raise ValueError(
                "x: needs a gradient, and the kernel of a network with input_shape has none: detach x, or leave"
                " input_shape out"
            )
        if sides[0].dim() == 2:
            return self._network_kernel(sides)
        flat = zip(*(x.reshape(-1, *x.shape[-2:]) for x in sides), strict=True)
        dense = torch.stack([to_dense(self._network_kernel(list(one))) for one in flat])
        return to_linear_operator(dense.reshape(*sides[0].shape[:-2], *dense.shape[1:]))

    def _network_kernel(self, sides: list[Tensor]) -> LinearOperator:
        x, *others = (self._as_network_input(side) for side in sides)
        y = others[0] if others else None
        with naming({"model": "net", "x": "x1", "y": "x2"}), evaluating(self.net):
            operator = NPKOperator.of(
                self.net,
                x,
                y,
                batch_size=self._batch_size,
                dtype=sides[0].dtype,
                cache=self._cache,
                max_work=None,
                progress=False,
            )
        return NPKLinearOperator.of(operator)

    def _as_network_input(self, x: Tensor) -> Tensor:
        own = next((parameter.dtype for parameter in self.net.parameters() if parameter.is_floating_point()), x.dtype)
        x = x.detach().to(own)
        return x if self._input_shape is None else x.reshape(len(x), *self._input_shape)

    def _check(self, x1: Tensor, x2: Tensor) -> None:
        for x, name in ((x1, "x1"), (x2, "x2")):
            require_dtype(x.dtype, name, _DTYPES)
            with naming({name: name}):
                require_device(devices_of(self.net), x, name)
            if self._input_shape is not None and x.shape[-1] != math.prod(self._input_shape):
                raise ValueError(
                    f"{name}: got {x.shape[-1]} columns, needs {math.prod(self._input_shape)}, which are the numbers of"
                    f" an input of shape {self._input_shape}"
                )
        if x1.dtype != x2.dtype:
            raise TypeError(f"x2: got {x2.dtype}, needs {x1.dtype} like x1: convert one of them")


def _shape_of(given: Any) -> tuple[int, ...]:
    sizes = [whole_number(size) for size in given] if isinstance(given, (tuple, list)) else []
    if not sizes or any(size is None or size < 1 for size in sizes):
        raise ValueError(f"input_shape: got {given!r}, needs whole numbers of at least 1, such as (1, 8, 8)")
    return tuple(size for size in sizes if size is not None)
