"""Traces calls of a model: behind which layer each ReLU runs, and who else sees that layer's output."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gatedops.trace.mode import RELU, RNN_RELU, Call, Intercept, name_of

# The output of these layers is a new tensor that no one else holds.
NEW_OUTPUT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
# These modules hand on what they are given, in training too.
_HANDS_ON = (nn.Sequential, nn.Identity)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = [f"_global{name}" for name in _HOOKS]
# These properties of an output may be read: they are the same after the ReLU.
_SAME_BEHIND = frozenset(
    [getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "layout", "is_cuda")]
    + [Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__]
)


@dataclass
class Output:
    """One output of a layer, and what became of it.

    Args:
        layer: the layer that gave it.
        relu: the first nn.ReLU that it went into.
        before: who else saw it before that ReLU, or at any time if it went into no ReLU; "" if no one did.
        after: who else saw it, or holds it, after that ReLU.
    """

    layer: nn.Module
    relu: nn.Module | None = None
    before: str = ""
    after: str = ""

    def seen(self, by: str) -> None:
        if self.relu is None:
            self.before = self.before or by
        else:
            self.after = self.after or by


@dataclass
class Trace:
    """What was seen in one or more calls of a model.

    Args:
        outputs: the outputs of each layer of the classes NEW_OUTPUT.
        relus: for each nn.ReLU and each of its calls, the output that it was called with; None: another tensor.
        functional: (module that was running, name of the function) of the ReLUs called as functions, each once.
    """

    outputs: dict[nn.Module, list[Output]] = field(default_factory=dict)
    relus: dict[nn.Module, list[Output | None]] = field(default_factory=dict)
    functional: dict[tuple[nn.Module, str], None] = field(default_factory=dict)

    def add(self, other: Trace) -> None:
        """Adds what was seen in another call."""
        for layer, outputs in other.outputs.items():
            self.outputs.setdefault(layer, []).extend(outputs)
        for relu, calls in other.relus.items():
            self.relus.setdefault(relu, []).extend(calls)
        self.functional.update(other.functional)


def trace_of(model: nn.Module, call: Callable[[], Any]) -> tuple[Trace, Any]:
    """Returns what is seen in a call of the model, and its result. No one else may call the model meanwhile."""
    watch = _Watch(model)
    intercept = Intercept(model, {RELU: watch.rectifier, RNN_RELU: watch.rectifier})
    # The mode entered last sees a call first, and as it was made.
    with torch.no_grad(), watch.watching(), intercept, watch:
        result = call()
    watch.look_who_holds()
    return watch.trace, result


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after a module, or in its backward."""
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        return True
    return any(getattr(nn.modules.module, hooks, None) for hooks in _GLOBAL_HOOKS)


class _Watch(TorchFunctionMode):
    """Sees the calls of functions and, while `watching`, those of modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self._model = model
        self._hooked = {module for module in model.modules() if has_hooks(module)}
        self._paths = {module: path for path, module in model.named_modules()}
        self._outputs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._running: list[nn.Module] = []
        # This is True while an nn.ReLU runs.
        self._inside = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self._inside and func not in _SAME_BEHIND:
            for output in self._among((args, kwargs)):
                output.seen(f"goes into {name_of(func) if name_of(func) != 'get' else 'a property'} too")
        return func(*args, **kwargs)

    def rectifier(self, call: Call) -> Any:
        """Handles a ReLU that is called as a function."""
        if not self._inside:
            module = self._running[-1] if self._running else self._model
            self.trace.functional[module, call.name] = None
        return call.run()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the modules; each still runs its own forward."""
        with ExitStack() as undo:
            for module in self._paths:
                if type(module) is nn.ReLU:
                    _put_around(undo, module, self._relu)
                elif type(module) in NEW_OUTPUT:
                    _put_around(undo, module, self._layer)
                for hook in (
                    module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                    module.register_forward_hook(self._leave, prepend=True, with_kwargs=True, always_call=True),
                ):
                    undo.callback(hook.remove)
            yield

    def look_who_holds(self) -> None:
        """Notes which outputs are still held. Call it after the traced call, while its result and what the model keeps
        are alive."""
        if any(output.relu is not None and not output.after for output in self._outputs.values()):
            # A tensor that only cycles of references keep alive does not count as held.
            gc.collect()
        for output in self._outputs.values():
            output.seen("is returned or held")

    # --- the modules ------------------------------------------------------------------------------------------------

    def _layer(self, layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        output = Output(layer)
        self.trace.outputs.setdefault(layer, []).append(output)
        self._outputs[result] = output
        return result

    def _relu(self, relu: nn.Module, forward: Callable[[Tensor], Tensor], input: Tensor) -> Tensor:
        q, output = input, self._outputs.get(input)
        if output is not None and output.relu is not None:
            output.seen("goes into two ReLUs")
            output = None
        if output is not None:
            output.relu = relu
        self.trace.relus.setdefault(relu, []).append(output)
        self._inside = True
        try:
            result = forward(q)
            # An in-place ReLU returns its input. A view is a second object, so we can tell who holds the input from who
            # uses the result.
            return result.view_as(result) if result is q else result
        finally:
            self._inside = False

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._running.append(module)
        if module in self._hooked:
            self._seen_by_hooks(module, (args, kwargs))

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
        if module in self._hooked:
            self._seen_by_hooks(module, result)
        if type(module) in _HANDS_ON:
            return
        given = set(map(id, self._among((args, kwargs))))
        for output in self._among(result):
            # The module may not hand it on in training: it may add noise then.
            if id(output) in given:
                output.seen(f"passes through {self._called(module)}")

    def _seen_by_hooks(self, module: nn.Module, values: Any) -> None:
        for output in self._among(values):
            if output.layer is not module:
                output.seen(f"is seen by the hooks of {self._called(module)}")

    def _among(self, values: Any) -> Iterator[Output]:
        """The watched outputs among the tensors of nested tuples, lists and dicts."""
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor) and leaf in self._outputs:
                yield self._outputs[leaf]

    def _called(self, module: nn.Module) -> str:
        return self._paths[module] or "the model"


def _put_around(undo: ExitStack, module: nn.Module, around: Callable[..., Any]) -> None:
    """Makes every call of a module's forward go through ``around(module, forward, ...)``."""
    # A patched forward stays: such a module is not fused.
    if "forward" in vars(module):
        return
    vars(module)["forward"] = partial(around, module, module.forward)
    undo.callback(vars(module).pop, "forward", None)
