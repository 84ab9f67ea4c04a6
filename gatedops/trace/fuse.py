"""fuse_relu: Linear and Conv2d with the ReLU behind them as one layer, wherever that is certain."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from gatedops.trace.checks import require_model
from gatedops.trace.rectifiers import FORMS

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_LIBRARIES = ("torch.nn.", "gatedops.nn.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Layers whose output is new and held by no one else: nobody sees an in-place ReLU behind them.
_NEW_OUTPUT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse_relu` did: (name of a module, text) for each.

    Args:
        replaced: modules that are another class now, and which: "GatedLinear", "GatedConv2d" or "Gate".
        kept: modules with a ReLU that stay as they are, and why.
    """

    replaced: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{name or 'the model'}: {kind}" for name, kind in self.replaced]
        return "\n".join(lines + [f"{name or 'the model'}: kept, {why}" for name, why in self.kept])


def fuse_relu(model: nn.Module, inplace: bool = False) -> nn.Module:
    """The model with Linear + ReLU as GatedLinear, Conv2d + ReLU as GatedConv2d and other nn.ReLU as Gate.

    Same outputs, bit for bit on the CPU, and same state_dict keys in the same order: checkpoints load. Replaced is what
    is certain to be equal: pairs that follow each other in an nn.Sequential, of torch's own classes, without hooks, the
    layer used nowhere else; a lone nn.ReLU that does not work in place on what others may hold. All else stays and
    works, functional ReLUs among it. A model that takes single layers out of its Sequential finds the ReLU in the layer
    before: leave such a one as it is.

    Args:
        model: any module. Fuse before making an optimizer: the parameters of the copy are new ones.
        inplace: change the model itself; its parameters stay the same objects.

    Returns:
        The fused model, a copy unless `inplace`, with a :class:`FuseReport` as its attribute ``fuse_report``.

    Raises:
        TypeError, ValueError: the model is no module, or TorchScript.
    """
    require_model(model)
    fused = model if inplace else deepcopy(model)
    fused.fuse_report = _Fuser(fused).run()  # type: ignore[assignment]
    return fused


class _Fuser:
    """Replaces children of a model's modules, slot by slot."""

    def __init__(self, model: nn.Module) -> None:
        from gatedops.nn import Gate, GatedConv2d, GatedLinear  # nn stands above this package

        self._gate: type[nn.Module] = Gate
        self._layers: dict[type, type[nn.Module]] = {nn.Linear: GatedLinear, nn.Conv2d: GatedConv2d}
        self._model = model
        self._uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
        self._gates: dict[nn.Module, nn.Module] = {}  # a shared ReLU becomes a shared Gate
        self._replaced: list[tuple[str, str]] = []
        self._kept: list[tuple[str, str]] = []

    def run(self) -> FuseReport:
        if isinstance(self._model, nn.ReLU):
            self._kept.append(("", "it is itself a ReLU"))
        for path, module in list(self._model.named_modules()):
            if _runs_in_order(module):
                self._fuse_pairs(path, module)
            self._replace_relus(path, module)
            functional = "" if isinstance(module, nn.ReLU) else _functional_relu(module)
            if functional:
                self._kept.append((path, functional))
        return FuseReport(tuple(self._replaced), tuple(self._kept))

    def _fuse_pairs(self, path: str, sequential: nn.Module) -> None:
        slots = sequential._modules
        for (key, layer), (behind, relu) in list(pairwise(slots.items())):
            kind = self._layers.get(type(layer))
            if layer is None or kind is None or type(relu) is not nn.ReLU:
                continue
            why = self._why_no_pair(layer, relu)
            if why:
                self._kept.append((_join(path, key), why))
                continue
            slots[key], slots[behind] = _as(kind, layer), nn.Identity().train(relu.training)
            self._replaced.append((_join(path, key), kind.__name__))

    def _why_no_pair(self, layer: nn.Module, relu: nn.Module) -> str:
        """Why a layer and the ReLU behind it cannot be one; "" where they can."""
        devices = {parameter.device.type for parameter in layer.parameters()}
        if self._uses[layer] > 1:
            return "the layer is used elsewhere too"
        if _has_hooks(layer) or _has_hooks(relu):
            return "the layer or its ReLU has hooks"
        return "" if len(devices) == 1 else f"its parameters lie on {' and '.join(sorted(devices))}"

    def _replace_relus(self, path: str, parent: nn.Module) -> None:
        before: nn.Module | None = None
        for key, child in list(parent._modules.items()):
            if isinstance(child, nn.ReLU):
                why = _why_no_gate(child, parent, before)
                if why:
                    self._kept.append((_join(path, key), why))
                else:
                    parent._modules[key] = self._gates.setdefault(child, self._gate().train(child.training))
                    self._replaced.append((_join(path, key), self._gate.__name__))
            before = child


def _why_no_gate(relu: nn.Module, parent: nn.Module, before: nn.Module | None) -> str:
    """Why a ReLU cannot become a Gate; "" where it can. `before` is the child before it."""
    if type(relu) is not nn.ReLU:
        return f"it is a {type(relu).__name__}, not torch's ReLU"
    if _has_hooks(relu):
        return "it has hooks"
    if type(parent).__module__.startswith("torch.nn.") and type(parent) not in _CONTAINERS:
        return f"it belongs to torch's {type(parent).__name__}"
    new = _runs_in_order(parent) and type(before) in _NEW_OUTPUT and not _has_hooks(before)
    if relu.inplace and not new:
        return "it works in place on what others may hold; with inplace=False it would be a Gate"
    return ""


def _runs_in_order(module: nn.Module) -> bool:
    """Whether a module passes its input through its children one after another."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _has_hooks(module: nn.Module | None) -> bool:
    return any(getattr(module, hooks, None) for hooks in _HOOKS)


def _as(kind: type[nn.Module], layer: nn.Module) -> nn.Module:
    """The layer, with all it holds, as a class that adds nothing of its own."""
    fused = kind.__new__(kind)
    fused.__dict__.update(layer.__dict__)
    return fused


def _functional_relu(module: nn.Module) -> str:
    """How a module calls a ReLU as a function, as far as its class and its attributes show; "" where it does not."""
    for name, value in vars(module).items():
        if callable(value) and not isinstance(value, nn.Module) and value in FORMS:
            return f"it calls a function, its attribute {name}"
    names = getattr(getattr(type(module).forward, "__code__", None), "co_names", ())
    own = not type(module).__module__.startswith(_LIBRARIES)
    if own and any(name in ("relu", "relu_") and not hasattr(module, name) for name in names):
        return "it calls relu as a function"
    return ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
