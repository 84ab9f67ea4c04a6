"""unfuse: gives a model torch's own layers and ReLUs again."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, nn

from gatedops.trace.checks import require_model
from gatedops.trace.copies import copied
from gatedops.trace.fuse import as_class
from gatedops.trace.wrappers import plain_path


class LinearReLU(nn.Linear):
    """A Linear layer with a ReLU of its own behind it. It has the state_dict keys of nn.Linear."""

    relu: nn.ReLU

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.relu(super().forward(input))
        return result


class Conv2dReLU(nn.Conv2d):
    """A Conv2d layer with a ReLU of its own behind it. It has the state_dict keys of nn.Conv2d."""

    relu: nn.ReLU

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.relu(super().forward(input))
        return result


def unfuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Returns the model with nn.Linear, nn.Conv2d and nn.ReLU instead of GatedLinear, GatedConv2d and Gate: the inverse
    of :func:`gatedops.fuse_relu`, for tools that look for nn.ReLU, such as DeepLift and GuidedBackprop of captum.

    The outputs stay the same, bit for bit on the CPU, and so do the state_dict keys and their order. The ReLU of a
    fused layer comes back to the place that fuse_relu emptied. A gated layer that was made by hand has no such place.
    It becomes a subclass of nn.Linear or nn.Conv2d with an nn.ReLU as its child ``relu``. Such a model must call its
    layers with one argument: torch's layers take no gate. Layers of other classes, subclasses of the gated ones among
    them, stay.

    Args:
        model: any module; one without gated layers stays as it is. Unfuse before you make an optimizer: the copy has
            parameters of its own.
        inplace: change the model itself; its parameters stay the same objects.

    Returns:
        The model, a copy unless `inplace`, without the attribute ``fuse_report``. A model that is itself a gated layer
        changes its class, so it needs inplace=False.

    Raises:
        TypeError, ValueError: the model is not a module, is TorchScript or cannot be copied; a Gate or a gated layer,
            which the error names, cannot become torch's.
    """
    # gatedops.nn imports this package, so we import gatedops.nn only here.
    from gatedops.nn import Gate, GatedConv2d, GatedLinear

    require_model(model)
    plain = model if inplace else copied(model, instead=", or pass inplace=True")
    forms = {GatedLinear: (nn.Linear, LinearReLU), GatedConv2d: (nn.Conv2d, Conv2dReLU)}
    _require_possible(plain, Gate, tuple(forms), inplace)
    slots: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in plain.modules():
        for key, child in parent._modules.items():
            if child is not None:
                slots[child].append((parent, key))
    others: dict[nn.Module, nn.Module] = {}
    for module in list(plain.modules()):
        if type(module) in forms:
            alone, with_relu = forms[type(module)]
            behind = [empty for empty in vars(module).get("relu_behind", ()) if empty in slots]
            others[module] = _with_relu(module, with_relu) if not behind else as_class(alone, module)
            vars(others[module]).pop("relu_behind", None)
            for empty in behind:
                others.setdefault(empty, as_class(nn.ReLU, empty))
        elif type(module) is Gate:
            others[module] = _relu_of(module)
    for module, other in others.items():
        for parent, key in slots[module]:
            others.get(parent, parent)._modules[key] = other
    plain = others.get(plain, plain)
    vars(plain).pop("fuse_report", None)
    return plain


def _require_possible(
    model: nn.Module, gate: type[nn.Module], layers: tuple[type[nn.Module], ...], inplace: bool
) -> None:
    """Raises ValueError if a module cannot become torch's."""
    if inplace and type(model) in (gate, *layers):
        kind = type(model).__name__
        raise ValueError(f"inplace: the model is itself a {kind}, which cannot change its class; use inplace=False")
    for path, module in model.named_modules():
        if type(module) is gate and module.given is not None:
            where = plain_path(path) or "it"
            raise ValueError(
                f"model: {where} is a Gate with given gates, which nn.ReLU cannot take; set given=None first"
            )
        if type(module) in (gate, *layers) and "forward" in vars(module):
            where = f"{plain_path(path) or 'it'} ({type(module).__name__})"
            raise ValueError(
                f"model: the forward of {where} is patched and would stay; delete its attribute forward first"
            )


def _relu_of(gate: nn.Module) -> nn.Module:
    relu = as_class(nn.ReLU, gate)
    for name in ("record", "gates", "given"):
        del vars(relu)[name]
    # A Gate that fuse_relu made of a ReLU still has that ReLU's own `inplace`.
    vars(relu).setdefault("inplace", False)
    return relu


def _with_relu(layer: nn.Module, kind: type[nn.Module]) -> nn.Module:
    other = as_class(kind, layer)
    vars(other)["_modules"] = dict(layer._modules)
    other.relu = nn.ReLU().train(layer.training)
    return other
