"""fuse_relu: makes one layer of Linear or Conv2d and the ReLU behind it, if a traced call proves that they are one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatedops.trace.checks import require_model, uncompiled
from gatedops.trace.copies import copied
from gatedops.trace.fuse_calls import ExampleCalls
from gatedops.trace.fuse_trace import Output, Trace, has_hooks
from gatedops.trace.wrappers import plain_path, unwrapped

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_OURS = "gatedops.nn."


@dataclass(frozen=True)
class FuseReport:
    """Says what :func:`fuse_relu` did, in pairs (name of a module, text).

    Args:
        replaced: the modules whose class changed, each with its new class: "GatedLinear", "GatedConv2d" or "Gate".
        kept: the modules with a ReLU that stay as they are, each with the reason.
    """

    replaced: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{name or 'the model'}: {kind}" for name, kind in self.replaced]
        return "\n".join(lines + [f"{name or 'the model'}: kept, {why}" for name, why in self.kept])


def fuse_relu(model: nn.Module, example: Any = None, inplace: bool = False) -> nn.Module:
    """Returns the model with Linear + ReLU as GatedLinear, Conv2d + ReLU as GatedConv2d and other nn.ReLU as Gate.

    The outputs stay the same, bit for bit on the CPU. The state_dict keys and their order stay too, so checkpoints
    load. A layer and an nn.ReLU become one only if a call of the model on `example` proves it: each output of the layer
    went into that ReLU and nowhere else, and each call of the ReLU came behind such a layer, wherever in the model the
    two are. Both must be of torch's own classes and have no hooks, and the layer must stand in one place of the model.
    nn.Identity takes the ReLU's place. Any other nn.ReLU that was run becomes a Gate, unless it works in place on a
    tensor that others may see. All other modules and functional ReLUs stay and work; the report says why.

    The model is called in evaluation mode and, if it takes the example in training mode, in that mode too, without
    gradients and uncompiled. Then the fused model is called, and the outputs are compared. Both models are left as they
    were. If a model's calls depend on the values or shapes of its inputs, other calls may do what this one does not
    show. Reads by C++ extensions and TorchScript functions are not seen; only the comparison covers them.

    Tools that look for nn.ReLU, such as DeepLift and GuidedBackprop of captum, do not find it in fused layers: give
    them ``gatedops.unfuse(model)``. Fuse before you make an optimizer: the copy has parameters of its own.

    Args:
        model: any module.
        example: what the model is called with: one input, a tuple of its inputs, or a dict of its keyword inputs. Two
            rows or more show what batch norm does in training mode. None: random vectors or square images, if the model
            takes any of those tried.
        inplace: change the model itself; its parameters stay the same objects.

    Returns:
        The fused model, a copy unless `inplace`, with a :class:`FuseReport` as its attribute ``fuse_report``.

    Raises:
        TypeError, ValueError: the model is not a module, is TorchScript or cannot be copied; no example is given and
            none is found, or the model does not take it. Errors that the model raises go through.
    """
    require_model(model)
    fused = model if inplace else copied(model, instead=", or pass inplace=True")
    fused.fuse_report = _Fuser(fused).run(example)  # type: ignore[assignment]
    return fused


class _Fuser:
    """Replaces children of a model's modules, slot by slot.

    Args:
        model: the model, whose wrappers are looked through: the model inside them is called, and its modules are named.
    """

    def __init__(self, model: nn.Module) -> None:
        # gatedops.nn imports this package, so we import gatedops.nn only here.
        from gatedops.nn import Gate, GatedConv2d, GatedLinear

        self._gate: type[nn.Module] = Gate
        self._fused_form: dict[type, type[nn.Module]] = {nn.Linear: GatedLinear, nn.Conv2d: GatedConv2d}
        self._called = unwrapped(model)
        self._paths = {module: plain_path(path) for path, module in self._called.named_modules()}
        self._slots: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
        for parent in self._called.modules():
            for key, child in parent._modules.items():
                if child is not None:
                    self._slots[child].append((parent, key))
        self._trace = Trace()
        self._replaced: dict[nn.Module, nn.Module] = {}
        self._kept: dict[nn.Module, dict[str, None]] = defaultdict(dict)

    def run(self, example: Any) -> FuseReport:
        if isinstance(self._called, nn.ReLU):
            return FuseReport((), ((self._paths[self._called], "it is itself a ReLU"),))
        with uncompiled():
            calls = ExampleCalls(self._called, example)
            self._trace = calls.traced()
            for relu in self._paths:
                if isinstance(relu, nn.ReLU):
                    self._replace(relu)
            why = calls.why_not_same() if self._replaced else ""
        if why:
            self._take_back(why)
        for module, function in self._trace.functional:
            if not isinstance(module, nn.ReLU) and not type(module).__module__.startswith(_OURS):
                self._kept[module][f"it calls {function} as a function"] = None
        replaced = [(m, type(self._replaced[m]).__name__) for m in self._paths if m in self._replaced]
        return FuseReport(
            tuple((self._paths[module], kind) for module, kind in replaced if kind != nn.Identity.__name__),
            tuple((path, why) for module, path in self._paths.items() for why in self._kept.get(module, ())),
        )

    def _replace(self, relu: nn.Module) -> None:
        """Fuses a ReLU with the layers before it, or makes it a Gate, or keeps it."""
        calls = self._trace.relus.get(relu, [])
        layers = [layer for layer in {o.layer: None for o in calls if o is not None} if type(layer) in self._fused_form]
        whys = {layer: self._why_no_pair(layer, relu) for layer in layers}
        alone = self._why_elsewhere(relu, calls, layers)
        if layers and not alone and not any(whys.values()):
            empty = as_class(nn.Identity, relu)
            for layer in layers:
                fused = as_class(self._fused_form[type(layer)], layer)
                # unfuse reads this. A module in a tuple does not become the layer's child.
                vars(fused)["relu_behind"] = (empty,)
                self._put(layer, fused)
            self._put(relu, empty)
            return
        stays = alone or "its ReLU stays for another layer"
        for layer, why in whys.items():
            self._kept[layer][why or stays] = None
        no_gate = self._why_no_gate(relu, calls)
        if no_gate:
            self._kept[relu][no_gate] = None
            return
        gate = as_class(self._gate, relu)
        gate.__dict__.update(record=False, gates=None, given=None)
        self._put(relu, gate)

    def _why_no_pair(self, layer: nn.Module, relu: nn.Module) -> str:
        """Why a layer cannot be fused with a ReLU that follows it; "" if it can."""
        if len(self._slots[layer]) != 1:
            return "the layer is used elsewhere too"
        if has_hooks(layer) or has_hooks(relu):
            return "the layer or its ReLU has hooks"
        for module in (layer, relu):
            for parent, _ in self._slots[module]:
                if _is_torchs(parent):
                    return f"it belongs to torch's {type(parent).__name__}, or its ReLU does"
        for output in self._trace.outputs[layer]:
            # After an in-place ReLU every reader of the output sees the activation, so later readers do no harm.
            if output.before or (output.after and not relu.inplace):
                return f"its output {output.before or output.after}"
            if output.relu is not relu:
                return "not each of its outputs goes into that ReLU"
        return ""

    def _why_elsewhere(self, relu: nn.Module, calls: list[Output | None], layers: list[nn.Module]) -> str:
        """Why these layers are kept: their ReLU is also needed elsewhere; "" if it is not."""
        if any(output is None or output.layer not in layers for output in calls):
            return "its ReLU runs behind other modules too"
        if 1 < len(self._slots[relu]) > len(layers):
            return "its ReLU stands in places that were not run"
        return ""

    def _why_no_gate(self, relu: nn.Module, calls: list[Output | None]) -> str:
        """Why a ReLU cannot become a Gate; "" if it can."""
        if type(relu) is not nn.ReLU:
            return f"it is a {type(relu).__name__}, not torch's ReLU"
        if has_hooks(relu):
            return "it has hooks"
        if "forward" in vars(relu):
            return "its forward is patched"
        for parent, _ in self._slots[relu]:
            if _is_torchs(parent):
                return f"it belongs to torch's {type(parent).__name__}"
        if not calls:
            return "it was not run in the traced call"
        if relu.inplace and not all(o and not o.before and not o.after and not has_hooks(o.layer) for o in calls):
            return "it works in place on what others may hold; with inplace=False it would be a Gate"
        return ""

    def _put(self, module: nn.Module, other: nn.Module) -> None:
        """Puts `other` into every place of `module`."""
        self._replaced[module] = other
        for parent, key in self._slots[module]:
            self._replaced.get(parent, parent)._modules[key] = other

    def _take_back(self, why: str) -> None:
        for module in list(self._replaced):
            for parent, key in self._slots[module]:
                parent._modules[key] = module
            if not isinstance(self._replaced.pop(module), nn.Identity):
                self._kept[module][why] = None


def _is_torchs(parent: nn.Module) -> bool:
    """Whether a module is one of torch's own layers with layers inside; such a layer may read them without a call."""
    return type(parent).__module__.startswith("torch.nn.") and type(parent) not in _CONTAINERS


def as_class(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """Returns the module as an instance of another class that shares all attributes with it."""
    other = kind.__new__(kind)
    other.__dict__.update(module.__dict__)
    return other
