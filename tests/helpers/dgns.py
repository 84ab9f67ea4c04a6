"""Makes deep gated networks of every variant, and computes them in plain torch (docs/math.md, section 11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gatedops import DGN, DLGN
from gatedops.nn import conv_spec, fc_spec


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strided() -> nn.Sequential:
    """Makes a nested chain with strides, average pooling, a ReLU module used twice and a convolution without gates."""
    relu = nn.ReLU()
    stem = nn.Sequential(nn.Conv2d(2, 5, 3, 2, 1), relu, nn.Identity(), nn.AvgPool2d(2))
    body = [nn.Conv2d(5, 4, 2, bias=False), nn.Conv2d(4, 6, 1), relu, nn.Flatten()]
    return nn.Sequential(stem, *body, nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 3))


# Maps a name to a function that makes the spec or the network, and to the shape of one input.
ARCHITECTURES = {
    "fc": (lambda: fc_spec(7, [33, 33, 33], 3), (7,)),
    "fc without biases": (lambda: fc_spec(7, [5, 5, 5], 3, bias=False), (7,)),
    "vconv": (lambda: conv_spec((2, 5, 4), [4, 4], [6, 6], 3), (2, 5, 4)),
    "gconv": (lambda: conv_spec((2, 5, 4), [3, 3], [6], 3, "gap", 2, "circular"), (2, 5, 4)),
    "strided net": (strided, (2, 13, 13)),
}

# Maps a name to a class and its arguments. `model_of` gives "FL" its features, and "permuted" a fitting order.
VARIANTS = {
    "FR-II": (DGN, {"mode": "FR-II"}),
    "FR-II, soft": (DGN, {"mode": "FR-II", "gate": "soft"}),
    "FR-DI": (DGN, {"mode": "FR-DI"}),
    "FL": (DGN, {"mode": "FL"}),
    "DL": (DGN, {}),
    "DL, as released": (DGN, {"beta": 4.0, "gain": 1.1}),
    "DL, PWC": (DGN, {"value_input": "ones"}),
    "DL, permuted": (DGN, {"order": "reversed"}),
    "FR-II, PWC, permuted": (DGN, {"mode": "FR-II", "value_input": "ones", "order": "reversed"}),
    "DLGN": (DLGN, {"beta": 2.0}),
    "DLGN, FR-II": (DLGN, {"mode": "FR-II"}),
    "DLGN, PWC, permuted": (DLGN, {"value_input": "ones", "order": "reversed"}),
    "DLGN-SF": (DLGN, {"shallow": True}),
    "DLGN-SF, FR-II, permuted": (DLGN, {"mode": "FR-II", "shallow": True, "order": "reversed"}),
}
HARD = ["FR-II", "FR-DI", "FL", "FR-II, PWC, permuted", "DLGN, FR-II", "DLGN-SF, FR-II, permuted"]
# Gates of layers of different sizes cannot be exchanged, and shallow layers must keep the image's size.
IMPOSSIBLE = {("strided net", name) for name in VARIANTS if "permuted" in name or "SF" in name}
CASES = [(a, v) for a in ARCHITECTURES for v in VARIANTS if (a, v) not in IMPOSSIBLE]
ORDERS = {"fc": (2, 0, 1), "fc without biases": (1, 2, 0), "vconv": (1, 0, 3, 2), "gconv": (1, 0, 2)}


def model_of(architecture: str, variant: str, seed: int = 0, dtype: torch.dtype = torch.float64, **changed) -> DGN:
    """Makes the network, with biases that are not 0."""
    make, _ = ARCHITECTURES[architecture]
    kind, arguments = VARIANTS[variant]
    arguments = arguments | {"generator": seeded(seed), "dtype": dtype} | changed
    if arguments.get("order") == "reversed":
        arguments["order"] = ORDERS[architecture]
    if arguments.get("mode") == "FL":
        arguments["feature"] = DGN(make(), "FR-II", generator=seeded(seed + 1)).value
    model = kind(make(), **arguments)
    with torch.no_grad():
        for network in (model.value, model.feature):
            for name, parameter in network.named_parameters():
                if name.endswith("bias"):
                    parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed + 2), dtype=dtype) / 4)
    return model


def inputs_of(architecture: str, n: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, *ARCHITECTURES[architecture][1], generator=seeded(seed), dtype=dtype)


def modules_of(network: nn.Sequential) -> list[nn.Module]:
    """Returns the modules in the order in which they run."""
    return [leaf for m in network for leaf in (modules_of(m) if isinstance(m, nn.Sequential) else [m])]


def feature_pre_activations(model: DGN, x: Tensor) -> list[Tensor]:
    """Returns the pre-activations of the feature network's gated layers, in its own order."""
    if model.shallow:
        return [layer(x.flatten(1) if isinstance(layer, nn.Linear) else x) for layer in model.feature]
    seen, h = [], x
    values = modules_of(model.value)
    for place, module in enumerate(modules_of(model.feature)):
        if isinstance(values[place], nn.ReLU):
            seen.append(h)
            h = h if isinstance(model, DLGN) else h.relu()
        else:
            h = module(h)
    return seen


def gates_by_hand(model: DGN, x: Tensor) -> list[Tensor]:
    """Returns the gates as numbers, in the order in which the value network uses them."""
    gates = [
        (q > 0).to(q.dtype) if model.gate == "hard" else model.gain / (1 + torch.exp(-model.beta * q))
        for q in feature_pre_activations(model, x)
    ]
    return [gates[layer] for layer in model.order]


def by_hand(model: DGN, x: Tensor, gates: list[Tensor] | None = None) -> Tensor:
    """Computes the output from the formulas."""
    remaining = iter(gates_by_hand(model, x) if gates is None else gates)
    z = x if model.value_input == "x" else torch.ones_like(x)
    for module in modules_of(model.value):
        z = z * next(remaining) if isinstance(module, nn.ReLU) else module(z)
    return z
