"""Names the calls inside a model, by the path of the module that makes them."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any

from torch import nn

from gatedops.trace.wrappers import plain_path

_LAYERS = ("torch.nn.", "gatedops.nn.")
# torch has several names for some activations, and torch.export writes relu6 as hardtanh in some calls only. Layers
# are named by one of these names, so that record_gates and steps give a call the same name.
_ONE_NAME = {
    "relu6": "hardtanh",
    "clip": "clamp",
    "absolute": "abs",
    "prelu_kernel": "prelu",
    "rrelu_with_noise": "rrelu",
    "rrelu_with_noise_functional": "rrelu",
}


def call_name(path: str, module: nn.Module, op: str) -> str:
    """The name of a call of `op` in `module` at `path`: the path if the module is a layer that does just this, else
    path.op."""
    is_layer = type(module).__module__.startswith(_LAYERS) and next(module.children(), None) is None
    if is_layer and path:
        return path
    return f"{path}.{op}" if path else op


def activation_op(op: str) -> str:
    """The name of an activation's function in the names of layers: "hardtanh" for relu6, "clamp" for clip."""
    return _ONE_NAME.get(op, op)


class Numbering:
    """Makes names unique in the order of the calls: "relu", "relu#2", "relu#3"."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._seen[name] += 1
        count = self._seen[name]
        return name if count == 1 else f"{name}#{count}"


class RunningModules:
    """While entered, knows which module of a model is running. It uses hooks, which it removes at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {module: plain_path(path) for path, module in model.named_modules()}
        self._root = model
        self._running: list[nn.Module] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> RunningModules:
        try:
            for module in self._paths:
                self._hooks.append(module.register_forward_pre_hook(self._enter_module, prepend=True))
                self._hooks.append(module.register_forward_hook(self._leave_module, always_call=True))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._remove()

    def name(self, op: str) -> str:
        """The name of a call of `op` made now; not unique."""
        module = self._running[-1] if self._running else self._root
        return call_name(self._paths[module], module, op)

    def activation(self, op: str) -> str:
        """The class of the activation that runs now, such as ReLU6; `op` if it is not a module of torch."""
        module = self._running[-1] if self._running else self._root
        return type(module).__name__ if type(module).__module__ == "torch.nn.modules.activation" else op

    def place(self) -> str:
        """The module that runs now: "layer1.0 (Block)"."""
        module = self._running[-1] if self._running else self._root
        return f"{self._paths[module] or 'the model'} ({type(module).__name__})"

    def _remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._running.clear()

    def _enter_module(self, module: nn.Module, args: tuple) -> None:
        self._running.append(module)

    def _leave_module(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._running and self._running[-1] is module:
            self._running.pop()
