"""The four steps that each network of the zoo goes through: what the library does, and which check earns a "yes"."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.utils._pytree as pytree
from kernel_check import over_random_weights
from network import N, call
from rectifiers import seen_by_dispatch
from torch import Tensor, nn

import gatedops

Activations = Literal["relu", "piecewise"]
# The two lists are outputs and gradients.
Learned = tuple[list[Tensor], list[Tensor]]


class Wrong(Exception):
    """The result differs from that of an independent calculation."""


class Nothing(Exception):
    """The network has nothing that the step works on."""


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        work: calls the library with (model, example) and the network's options for this step; only this is timed.
        check: takes what `work` returned, the model, the example and the options, and returns a note for the cell, such
            as how many layers `work` took, or "". Raises Wrong or Nothing.
    """

    work: Callable[..., Any]
    check: Callable[..., str]


def record(model: nn.Module, example: Any, activations: Activations = "relu") -> tuple[gatedops.GateBits, str]:
    """Returns the gates, and the warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(example, Tensor):
            bits = gatedops.record_gates(model, example, activations=activations)
        else:
            bits = gatedops.record_gates(model, [example], call=call, activations=activations)
    for warning in caught:
        warnings.warn(warning.message, stacklevel=1)
    return bits, " ".join(str(warning.message) for warning in caught)


def check_record(
    result: tuple[gatedops.GateBits, str], model: nn.Module, example: Any, activations: Activations = "relu"
) -> str:
    """Checks that the gates equal, bit for bit and in the same order, those that torch's dispatcher sees."""
    (bits, told), seen = result, seen_by_dispatch(model, example, activations == "piecewise")
    if bits.n != N:
        raise Wrong(f"{bits.n} rows of gates for {N} inputs")
    masks = iter(seen.gates)
    for layer, recorded in zip(bits.layers, bits.unpack(), strict=True):
        # A recurrent layer of gates has one part for each step, every other layer has one part.
        parts: list[Tensor] = []
        while sum(part[0].numel() for part in parts) < layer.width:
            mask = next(masks, None)
            if mask is None or mask.numel() % N:
                raise Wrong(f"{layer.name} has gates that torch's calls do not have")
            parts.append(mask.reshape(N, -1))
        if not torch.equal(recorded.flatten(1), torch.cat(parts, dim=1)):
            raise Wrong(f"the gates of {layer.name} differ from those of torch's calls")
    if left := len(list(masks)):
        raise Wrong(f"{left} calls of an activation are not recorded")
    words = told.lower().replace("_", "")
    if silent := sorted({name for name in seen.others if not _is_told(name, words)}):
        raise Wrong(f"no warning names {', '.join(silent)}")
    counted = f"{len(bits.layers)} layer{'s' if len(bits.layers) > 1 else ''}"
    return counted if activations == "relu" else f"{counted}, {activations}"


def _is_told(function: str, words: str) -> bool:
    """Whether a warning names an activation: its function, or the module that calls it."""
    names = {"hardtanh": ("hardtanh", "relu6")}.get(function.strip("_"), (function.replace("_", ""),))
    return any(name in words for name in names)


def fuse(model: nn.Module, example: Any) -> nn.Module:
    return gatedops.fuse_relu(model, example)


def check_fuse(fused: Any, model: nn.Module, example: Any) -> str:
    """Checks that the fused network's outputs equal the network's, bit for bit."""
    with torch.no_grad():
        for ours, plain in zip(tensors(call(fused, example)), tensors(call(model, example)), strict=True):
            if not torch.equal(ours, plain):
                raise Wrong("the outputs differ from the network's")
    if not fused.fuse_report.replaced:
        kept = sorted({why for _, why in fused.fuse_report.kept})
        raise Nothing(f"nothing to replace, {'; '.join(kept) or 'it has no nn.ReLU'}")
    return f"{len(fused.fuse_report.replaced)} replaced"


def twin(model: nn.Module, example: Any) -> tuple[list[str], Learned, Learned]:
    """Runs two twins forward and backward, the first with weights drawn anew, the second with the network's weights.

    Returns the names of the weights that were not drawn anew, then the outputs and gradients of each twin.
    """
    drawn = gatedops.gated_twin(model)
    before = dict(model.named_parameters())
    left = [name for name, weight in drawn.value.named_parameters() if torch.equal(weight, before[name])]
    return left, learned(drawn, example), learned(gatedops.gated_twin(model, model), example)


def check_twin(result: tuple[list[str], Learned, Learned], model: nn.Module, example: Any) -> str:
    """Checks that the twin with new weights learns, and that the other has the network's outputs and gradients."""
    left, drawn, same = result
    if left:
        raise Wrong(f"these weights were not drawn anew: {', '.join(left)}")
    if not all(tensor.isfinite().all() for part in drawn for tensor in part):
        raise Wrong("an output or a gradient of the twin with new weights is not finite")
    plain = learned(deepcopy(model), example)
    if all(map(close, drawn[0], plain[0])):
        raise Wrong("the twin with new weights has the network's outputs")
    for name, ours, theirs in zip(("outputs", "gradients"), same, plain, strict=True):
        if len(ours) != len(theirs) or not all(map(close, ours, theirs)):
            raise Wrong(f"the {name} of the twin with the network's weights differ from the network's")
    return ""


def npk(model: nn.Module, example: Any, output: int | None = None) -> tuple[Tensor, int]:
    gram, exponent = gatedops.npk(model, example, output=output, return_exponent=True)
    return gram, exponent


def check_npk(result: tuple[Tensor, int], model: nn.Module, example: Any, output: int | None = None) -> str:
    """Checks that the kernel is finite, symmetric and positive semi-definite, with means of f(s)^2 as its diagonal."""
    gram, exponent = result[0].double(), result[1]
    if not (gram.isfinite().all() and torch.equal(gram, gram.T) and (gram.diagonal() > 0).all()):
        raise Wrong("the kernel is not finite, symmetric and positive on its diagonal")
    smallest = torch.linalg.eigvalsh(gram / gram.diagonal().max())[0].item()
    if smallest < -1e-5:
        raise Wrong(f"the kernel has an eigenvalue of {smallest:.1e} of its largest entry")
    ratio, error = over_random_weights(model, example, gram.diagonal() * 2.0**exponent, output or 0)
    if not abs(ratio - 1) <= 6 * error:
        raise Wrong(f"the mean over random weights is {ratio:.3f} +- {error:.3f} of the diagonal")
    return "" if output is None else f"output {output}"


STEPS = {
    "record": Step(record, check_record),
    "fuse": Step(fuse, check_fuse),
    "twin": Step(twin, check_twin),
    "npk": Step(npk, check_npk),
}


def learned(model: nn.Module, example: Any) -> Learned:
    """Returns the outputs for an example, and the gradients of a weighted sum of them with respect to its weights."""
    outputs = tensors(call(model, example))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    loss = torch.stack([(out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() for out in outputs]).sum()
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [out.detach() for out in outputs], [gradient for gradient in found if gradient is not None]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    return a.shape == b.shape and bool((a - b).norm() <= 1e-5 * b.norm() + 1e-6)


def tensors(output: Any) -> list[Tensor]:
    """Returns the tensors of an output, whatever holds them."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
