"""Times one net, the forward alone and then forward and backward, and counts the bytes kept for the backward."""

from __future__ import annotations

from functools import partial

import torch
from _common.contest import OURS, Call, Contest, Entry, Failures
from torch import Tensor

from _gated_linear.cublaslt import library
from _gated_linear.nets import Layers, Net
from _gated_linear.two_calls import TwoCalls

FORWARD, TRAINING = "forward", "forward + backward"
EAGER, PRODUCTS, TWO_CALLS = "torch eager", "matrix products alone", "cuBLASLt, two calls"
COMPILED = {"torch.compile": None, "torch.compile, max-autotune": "max-autotune"}
# Results may differ by this share of the largest one: rounding grows over the layers.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
# A pre-activation close to 0 may open a gate in one network and not in the other: in the half-precision dtypes, this
# share of the results may differ by more.
MAY_DIFFER = {torch.float32: 0.0, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def time_net(net: Net, failures: Failures, repeats: int, *, compiled: bool) -> list[Entry]:
    """Times all contestants: gatedops, eager torch, torch.compile, cuBLASLt where it can run, and the limit."""
    nets: dict[str, Layers] = {OURS: net.ours, EAGER: net.eager}
    if compiled:
        torch._dynamo.reset()  # the nets before this one count towards its limit of recompilations
        for by, mode in COMPILED.items():
            nets[by] = torch.compile(net.eager, fullgraph=True, dynamic=False, mode=mode)  # it compiles when called
    saved: dict[str, dict[str, object]] = {}
    with failures.caught(f"{net.kind} {net.cell}", "saved bytes", f"{OURS}, {EAGER}"):
        saved = saved_facts(net)
    entries = time_runs(net, nets, FORWARD, failures, repeats, {})
    return entries + time_runs(net, nets, TRAINING, failures, repeats, saved)


def time_runs(
    net: Net, nets: dict[str, Layers], what: str, failures: Failures, repeats: int, saved: dict[str, dict[str, object]]
) -> list[Entry]:
    """Times one kind of run, by these nets, by cuBLASLt and by the matrix products alone."""
    backward, check, facts = what == TRAINING, partial(require_right, net), net.facts()
    contest = Contest(f"{net.kind} {net.cell}", failures, device=net.x.device.type)
    for by, layers in nets.items():
        contest.enter(what, by, partial(net.run, layers, backward), check=check, facts=facts | saved.get(by, {}))
    if has_two_calls(net):
        contest.enter(what, TWO_CALLS, lambda: TwoCalls(net).run(backward), check=check, facts=facts)
    contest.enter(what, PRODUCTS, lambda: net.products(backward), facts=facts)
    return contest.run(repeats, base=(what, OURS), limits=(PRODUCTS,))


def has_two_calls(net: Net) -> bool:
    """Says whether cuBLASLt can run the net: on a GPU, with hard gates, in widths that its masks allow."""
    return net.x.device.type == "cuda" and net.kind != "soft" and net.cell.width % 128 == 0 and library() is not None


def require_right(net: Net, call: Call) -> None:
    """Raises RuntimeError if the results of a call are not those of eager torch."""
    found = call()
    with torch.no_grad():
        expected = net.eager(net.x)
    for result, eager in zip(found, expected, strict=True):
        off = (result.detach() - eager).abs() > TOLERANCE[eager.dtype] * (eager.abs() + eager.abs().max())
        if float(off.double().mean()) > MAY_DIFFER[eager.dtype] or bool(result.isnan().any()):
            raise RuntimeError("the results are wrong: they differ from those of eager torch")


def saved_facts(net: Net) -> dict[str, dict[str, object]]:
    """Returns the bytes that gatedops and eager torch keep for the backward; torch.compile decides that for itself."""
    kept = {by: saved_bytes(net, layers) for by, layers in ((OURS, net.ours), (EAGER, net.eager))}
    return {by: {"saved_bytes": size, "saved_of_eager": size / kept[EAGER]} for by, size in kept.items()}


def saved_bytes(net: Net, layers: Layers) -> int:
    """Returns the bytes that autograd keeps of one forward.

    Parameters are there anyway and do not count. What is kept twice counts once.
    """
    parameters = {parameter.data_ptr() for parameter in net.parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = layers(net.x)
    assert results[0].requires_grad
    return sum(kept.values())
