"""Shows handlers the calls that a torch model makes: a TorchFunctionMode hands each kind of call to one handler.

A mode sees torch's functions whoever calls them (modules, functional forms, methods, torch's own layers) and in call
order, without capturing a graph. It does not see TorchScript, operations inside compiled code, or what a function of
torch or of an extension calls inside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gatedops.trace.constants import Constants
from gatedops.trace.rectifiers import FORMS, Masks, argument, forms_of, is_in_place

RELU = "relu"
FUSED_RELU = "fused ReLU"
RNN_RELU = "rnn_relu"
MAX_POOL = "max_pool2d"
OTHER_POOL = "another max-pool"
BATCH_NORM = "batch_norm"
PIECEWISE = "piecewise"

_GATED_LINEAR, _GATE_RELU = torch.ops.gatedops.gated_linear_relu.default, torch.ops.gatedops.gate_relu.default
_BY_DIMENSIONS = [
    f"{name}{d}d{tail}"
    for name in ("adaptive_max_pool", "fractional_max_pool")
    for d in (1, 2, 3)
    for tail in ("", "_with_indices")
]

# Names the kind of each function. The functions of rectifiers.FORMS are not listed: they are RELU calls only with
# certain arguments.
KINDS: dict[Any, str] = {
    **dict.fromkeys(forms_of("rnn_relu", "rnn_relu_cell"), RNN_RELU),
    **dict.fromkeys(forms_of("max_pool2d", "max_pool2d_with_indices"), MAX_POOL),
    **dict.fromkeys(forms_of("max_pool1d", "max_pool1d_with_indices"), OTHER_POOL),
    **dict.fromkeys(forms_of("max_pool3d", "max_pool3d_with_indices", *_BY_DIMENSIONS), OTHER_POOL),
    **dict.fromkeys([_GATED_LINEAR, _GATE_RELU], FUSED_RELU),
    F.batch_norm: BATCH_NORM,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a handler may take.

    Args:
        kind: RELU, FUSED_RELU (ours, whose results are (activation, words)), RNN_RELU, MAX_POOL (2-d), OTHER_POOL,
            BATCH_NORM, PIECEWISE (only from piecewise.PiecewiseIntercept).
        func, args, kwargs: the function that was called, and its arguments.
        input: the tensor that the call works on; for a RELU or PIECEWISE, its pre-activation.
    """

    kind: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input: Tensor

    @property
    def name(self) -> str:
        """The name that torch gives the function."""
        return name_of(self.func)

    @property
    def in_place(self) -> bool:
        """Whether a RELU overwrites its pre-activation."""
        return is_in_place(self.func, self.args, self.kwargs)

    def run(self) -> Any:
        """Makes the call unchanged and returns its result."""
        return self.func(*self.args, **self.kwargs)


Handler = Callable[[Call], Any]


class Intercept(TorchFunctionMode):
    """Gives each call whose kind has a handler to ``handler(call)``, whose result replaces that of the call.

    Every other call goes through, and so do calls on tensors that no input changes, such as weights.

    Args:
        model: the model that is called while the mode is on; the mode is on for one pass.
        handlers: the handler of each kind.
        otherwise: ``otherwise(func)`` sees every call that no handler takes.
        on_constants: handles the calls on tensors that no input changes, if their kinds have handlers.
        fresh: whether a new tensor that is made of numbers alone counts as one that no input changes.
    """

    def __init__(
        self,
        model: nn.Module,
        handlers: Mapping[str, Handler],
        otherwise: Callable[[Any], None] | None = None,
        on_constants: Handler | None = None,
        fresh: bool = True,
    ) -> None:
        super().__init__()
        self._handlers = dict(handlers)
        self._otherwise = otherwise
        self._on_constants = on_constants
        self._constants = Constants(model, fresh)
        self._masks = Masks(self.is_constant)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        result = self._result(func, args, kwargs)
        self._constants.see(func, args, kwargs, result)
        self._masks.see(func, args, kwargs, result)
        return result

    def is_constant(self, tensor: Any) -> bool:
        """Whether no input changes a tensor, as far as the calls of this pass show."""
        return tensor in self._constants

    def _result(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        call = self._call(func, args, kwargs)
        handler = None if call is None else self._handlers.get(call.kind)
        if call is not None and handler is not None:
            if call.input not in self._constants:
                return handler(call)
            if self._on_constants is not None:
                return self._on_constants(call)
        if self._otherwise is not None:
            self._otherwise(func)
        return func(*args, **kwargs)

    def _call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        kind = KINDS.get(func)
        if kind is not None:
            return Call(kind, func, args, kwargs, argument(args, kwargs, 0, "input", "self"))
        form = FORMS.get(func)
        q = None if form is None or "out" in kwargs else form(args, kwargs, self._masks)
        # A clamp of whole numbers clamps indices or lengths and makes no gate.
        if not isinstance(q, Tensor) or not (q.is_floating_point() or name_of(func) == RELU):
            return None
        return Call(RELU, func, args, kwargs, q)


def name_of(func: Any) -> str:
    """The name that torch gives a function: "threshold" for F.threshold and for torch.ops.aten.threshold_.default."""
    return str(getattr(func, "__name__", "")).split(".")[0].strip("_")
