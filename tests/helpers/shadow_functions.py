"""Every public function of tensors works on the device "shadow" (shadow.py), forward and backward, as on the CPU;
test_portable_device.py runs this in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import FunctionType
from typing import Any

import pytest
import shadow
import torch
from public_calls import BITS, CALLS, FLOAT32, FLOAT64, Things, gradients
from shadow_tools import assert_alike, without_float64
from torch import nn

import gatedops
from gatedops import (
    DGN,
    GateBits,
    GateCache,
    count_regions,
    devices,
    gate_agreement,
    gate_hamming,
    gate_neighbors,
    gate_overlap,
    gate_stats,
    gated_linear,
    gated_linear_pair,
    naswot_score,
    npf,
    npk,
    npk_diag,
    npk_gram,
    npk_matvec,
    npv,
    ntk,
    path_norm,
    record_gates,
    soft_npk_gram,
)
from gatedops.nn import Gate, GatedConv2d, GatedLinear, fc_spec
from gatedops.stats import GateRecorder, class_overlap, gate_change, npk_alignment, npk_alignments

shadow.setup()

LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 1]
HERE = Things(FLOAT64)
THERE, SINGLE = HERE.on("shadow"), Things(FLOAT32).on("shadow")


def mlp(dtype: torch.dtype = FLOAT64) -> nn.Sequential:
    """Makes a network that takes inputs like the rows x of the things."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 2)).to(dtype)


# These read how large their inputs are, to stay in the range of the dtype, or to say that they do not.
READING = (
    *("npk_gram, normalized", "npk_gram of two sides, normalized", "npk_gram of bytes"),
    *("soft_npk_gram", "soft_npk_gram of two sides"),
)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT32], ids=str)
def test_function_gives_what_it_gives_on_the_cpu(name, dtype):
    """The host must not wait, except for READING, and float32 must not use float64."""
    here = Things(dtype)
    there = here.on("shadow")
    with shadow.no_host_copies(forbid=name not in READING), nullcontext() if dtype == FLOAT64 else without_float64():
        found = CALLS[name](there)
        found_gradients = gradients(found, there.numbers())
    expected = CALLS[name](here)
    assert_alike(found, expected)
    assert_alike(found_gradients, gradients(expected, here.numbers()))


def test_functions_are_compiled_without_a_break():
    """All are compiled together, because each compilation takes time; float32 must not use float64."""
    torch._dynamo.reset()
    here = Things(FLOAT32)
    there = here.on("shadow")

    def results(numbers: dict[str, Any]) -> list[Any]:
        things = object.__new__(Things)
        things.__dict__.update(numbers)
        return [CALLS[name](things) for name in CALLS if name not in ("gate_stats", "gate_change")]

    with without_float64():
        compiled = torch.compile(results, fullgraph=True, backend="aot_eager")(there.__dict__)
        found = gradients(compiled, there.numbers())
    expected = results(here.__dict__)
    assert_alike(compiled, expected)
    assert_alike(found, gradients(expected, here.numbers()))


# --- what gives numbers, and so waits -----------------------------------------------------------------------------

ORDER = torch.arange(9).flip(0)
NUMBERS: dict[str, Callable[[Things], Any]] = {
    "gate_stats": lambda t: gate_stats(t.bits).net.summary(),
    "gate_change": lambda t: gate_change(t.bits, t.bits[ORDER]).net.share,
    "count_regions": lambda t: count_regions(t.bits),
    "naswot_score": lambda t: [naswot_score(t.bits), naswot_score(t.bits, per_layer=True, batch_size=4)],
    "class_overlap": lambda t: class_overlap(t.bits, torch.tensor(LABELS, device=t.x.device)),
    "class_overlap of a list": lambda t: class_overlap(t.bits, LABELS),
    "npk_alignment": lambda t: npk_alignment(t.bits, t.bits[ORDER], t.x, block=4),
    "npk_alignments": lambda t: npk_alignments([t.bits, t.bits[ORDER], t.bits], block=4).tolist(),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_on_the_cpu(name):
    assert_alike(NUMBERS[name](THERE), NUMBERS[name](HERE))


@pytest.mark.parametrize("name", ["gate_stats", "gate_change", "count_regions", "naswot_score"])
def test_numbers_need_no_float64_on_the_device(name):
    expected = NUMBERS[name](HERE)
    with without_float64():
        assert_alike(NUMBERS[name](THERE), expected)


@pytest.mark.parametrize("name", CALLS)
def test_cpu_tensors_stay_there_under_another_default_device(name):
    expected = CALLS[name](HERE)
    with torch.device("shadow"):
        found = CALLS[name](HERE)
    assert_alike(found, expected, exact=True, device="cpu")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_cpu_tensors_do_not_depend_on_the_default_device(name):
    expected = NUMBERS[name](HERE)
    with torch.device("shadow"):
        assert_alike(NUMBERS[name](HERE), expected, exact=True, device="cpu")


# --- GateBits -----------------------------------------------------------------------------------------------------


def test_gatebits_go_there_and_back(tmp_path):
    there = BITS.to("shadow")
    assert there.device == torch.device("shadow:0")
    assert there == BITS.to("shadow")
    assert there != there[ORDER]
    assert there != BITS
    assert there.to("cpu") == BITS
    there.save(tmp_path / "bits")
    for mmap in (False, True):
        assert GateBits.load(tmp_path / "bits", mmap=mmap).to("shadow") == there.compact()


def test_gatebits_are_indexed_by_masks_and_from_the_cpu():
    mask = HERE.x[:, 0].detach() > 0
    for rows in (mask, mask.to("shadow"), ORDER, ORDER.to("shadow"), torch.tensor(4), torch.tensor(4).to("shadow")):
        assert BITS.to("shadow")[rows] == BITS[rows.cpu()].to("shadow")


# --- bad input: one sentence that begins with the argument --------------------------------------------------------

A, B = THERE, HERE
NET, DEEP = mlp().to("shadow"), DGN(fc_spec(5, [7], 2), "FR-II", device="shadow", dtype=FLOAT64)
LAYER, CONV = GatedLinear(4, 40, device="shadow", dtype=FLOAT64), GatedConv2d(2, 3, 3, device="shadow", dtype=FLOAT64)
PAIR = {"h": A.h, "w_f": A.w_f, "b_f": A.b, "z": A.z, "w_v": A.w_v, "b_v": A.b}


def pair_with(**other: Any) -> Any:
    return gated_linear_pair(**(PAIR | other))


def no_grad(call: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return call()


FIRST = A.bits.select_layers([0])
MIXED: dict[str, tuple[str, Callable[[], Any]]] = {
    "pack": ("gates[1]", lambda: GateBits.pack([A.x, B.x])),
    "cat": ("parts[1]", lambda: GateBits.cat([A.bits, B.bits])),
    "rows": ("rows", lambda: B.bits[ORDER.to("shadow")]),
    "gate_overlap": ("b", lambda: gate_overlap(A.bits, B.bits)),
    "gate_agreement": ("b", lambda: gate_agreement(A.bits, B.bits)),
    "gate_hamming": ("b", lambda: gate_hamming(A.bits, B.bits)),
    "gate_neighbors": ("y_bits", lambda: gate_neighbors(A.bits, 1, B.bits)),
    "npk_gram x": ("x", lambda: npk_gram(B.x, A.bits)),
    "npk_gram y": ("y", lambda: npk_gram(A.x, A.bits, B.y, A.y_bits)),
    "npk_gram y_bits": ("y_bits", lambda: npk_gram(A.x, A.bits, A.y, B.y_bits)),
    "npk_gram out": ("out", lambda: npk_gram(A.x.detach(), A.bits, dtype=FLOAT64, out=B.out)),
    "npk_diag": ("x", lambda: npk_diag(B.x, A.bits)),
    "npk_matvec x": ("x", lambda: npk_matvec(B.x, A.bits, A.x)),
    "npk_matvec v": ("v", lambda: npk_matvec(A.x, A.bits, B.x)),
    "soft_npk_gram gates": ("gates[1]", lambda: soft_npk_gram(None, [A.x, B.soft])),
    "soft_npk_gram x": ("x", lambda: soft_npk_gram(B.x, [A.soft])),
    "soft_npk_gram y": ("y", lambda: soft_npk_gram(A.x, [A.x], B.y, [A.y])),
    "soft_npk_gram y_gates": ("y_gates", lambda: soft_npk_gram(A.x, [A.x], A.y, [B.y])),
    "gated_linear weight": ("weight", lambda: gated_linear(A.h, B.w_f)),
    "gated_linear bias": ("bias", lambda: gated_linear(A.h, A.w_f, B.b)),
    "gated_linear bits": ("gate", lambda: gated_linear(A.h, A.w_f, A.b, B.bits.select_layers([0]))),
    "gated_linear hard": ("gate", lambda: gated_linear(A.h, A.w_f, A.b, B.hard)),
    "gated_linear soft": ("gate", lambda: gated_linear(A.h, A.w_f, A.b, B.soft)),
    "gated_linear_pair w_f": ("w_f", lambda: pair_with(w_f=B.w_f)),
    "gated_linear_pair b_f": ("b_f", lambda: pair_with(b_f=B.b)),
    "gated_linear_pair w_v": ("w_v", lambda: pair_with(w_v=B.w_v)),
    "gated_linear_pair b_v": ("b_v", lambda: pair_with(b_v=B.b)),
    "gated_linear_pair z": ("z", lambda: pair_with(z=B.z, w_v=B.w_v, b_v=B.b)),
    "gated_linear_pair gates_out": ("gates_out", lambda: no_grad(lambda: pair_with(gates_out=B.gates_out))),
    "GatedLinear": ("weight", lambda: LAYER(B.h)),
    "GatedConv2d": ("x", lambda: CONV(B.images)),
    "GatedConv2d gate": ("gate", lambda: CONV(A.images, B.images.repeat(1, 2, 1, 1)[:, :3, 1:3, 1:4] > 0)),
    "Gate": ("gate", lambda: Gate()(B.soft, FIRST)),
    "Gate, soft": ("gate", lambda: Gate()(B.soft, A.soft)),
    "gate_change": ("b", lambda: gate_change(A.bits, B.bits)),
    "npk_alignment": ("b", lambda: npk_alignment(A.bits, B.bits)),
    "npk_alignment x": ("x", lambda: npk_alignment(A.bits, A.bits, B.x)),
    "npk_alignments": ("checkpoints[1]", lambda: npk_alignments([A.bits, B.bits])),
    "DGN": ("x", lambda: DEEP(B.x)),
    "DGN gates": ("gates", lambda: DEEP(A.x, gates=DEEP.gates(A.x).to("cpu"))),
    "GateCache": ("data", lambda: GateCache.build(DEEP, B.x)),
    "record_gates": ("data", lambda: record_gates(NET, B.x)),
    "GateRecorder": ("x", lambda: GateRecorder(NET, B.x).record(0)),
    "npk": ("x", lambda: npk(NET, B.x)),
    "npk y": ("y", lambda: npk(NET, A.x, B.y)),
    "ntk": ("x", lambda: ntk(NET, B.x)),
    "ntk y": ("y", lambda: ntk(NET, A.x, B.y)),
    "npf": ("x", lambda: npf(NET, B.x)),
    "npv": ("x", lambda: npv(NET, B.x)),
    "path_norm": ("x", lambda: path_norm(NET, 2, B.x)),
}


@pytest.mark.parametrize("calls", [CALLS, MIXED], ids=["calls", "two devices"])
def test_every_public_op_is_here(calls):
    public = {name for name in gatedops.__all__ if getattr(gatedops, name).__class__ is FunctionType}
    ops = {name for name in public if getattr(gatedops, name).__module__.startswith("gatedops.ops.")}
    assert ops <= {name.replace(",", " ").split()[0] for name in calls}


@pytest.mark.parametrize("name", MIXED)
def test_two_devices_are_refused_in_one_sentence(name):
    argument, call = MIXED[name]
    with pytest.raises(ValueError, match="on cpu") as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{argument}: ")
    assert "cpu" in message
    assert "shadow:0" in message
    assert "\n" not in message


C = SINGLE
SMALL = mlp(FLOAT32).to("shadow")
NEEDS_FLOAT64: dict[str, tuple[str, Callable[[], Any]]] = {
    "npk_gram": ("dtype", lambda: npk_gram(C.x, C.bits, dtype=FLOAT64)),
    "npk_diag": ("dtype", lambda: npk_diag(C.x, C.bits, dtype=FLOAT64)),
    "npk_matvec": ("dtype", lambda: npk_matvec(C.x, C.bits, C.x, dtype=FLOAT64)),
    "gate_neighbors": ("dtype", lambda: gate_neighbors(C.bits, 1, dtype=FLOAT64)),
    "soft_npk_gram": ("dtype", lambda: soft_npk_gram(C.x, [C.x], dtype=FLOAT64)),
    "npk": ("dtype", lambda: npk(SMALL, C.x, dtype=FLOAT64)),
    "ntk": ("dtype", lambda: ntk(SMALL, C.x, dtype=FLOAT64)),
    "npf": ("x", lambda: npf(SMALL, C.x)),
    "npv": ("x", lambda: npv(SMALL)),
    "path_norm": ("x", lambda: path_norm(SMALL, 2)),
    "class_overlap": ("bits", lambda: class_overlap(C.bits, LABELS)),
    "npk_alignment": ("a", lambda: npk_alignment(C.bits, C.bits)),
    "npk_alignments": ("checkpoints", lambda: npk_alignments([C.bits])),
    "DGN": ("dtype", lambda: DGN(fc_spec(5, [7], 2), device="shadow", dtype=FLOAT64)),
    "DGN of a net": ("dtype", lambda: DGN(mlp(), device="shadow")),
}


@pytest.mark.parametrize("name", NEEDS_FLOAT64)
def test_a_device_without_float64_is_refused_in_one_sentence(name):
    argument, call = NEEDS_FLOAT64[name]
    with without_float64(), pytest.raises((TypeError, ValueError)) as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{argument}: ")
    assert "float64" in message
    assert "shadow" in message
    assert "\n" not in message


# --- what gatedops knows of the device ----------------------------------------------------------------------------


def test_float64_is_found_out_once():
    device = torch.device("shadow:0")
    x = torch.tensor([0, 5, 2**30 + 1]).to(device)
    assert devices.has_float64(device)
    assert devices.most_precise(device) == FLOAT64
    assert_alike(devices.in_float64(x), x.cpu().double(), exact=True)
    with without_float64():
        assert not devices.has_float64(device)
        assert devices.most_precise(device) == FLOAT32
        assert torch.equal(devices.in_float64(x), x.cpu().double())
        with shadow.record() as counts:
            devices.has_float64(device)
        assert not counts


def test_fake_tensors_do_not_hide_that_float64_is_missing():
    """torch.export and torch.compile compute with fake tensors, in any dtype."""
    device = torch.device("shadow:0")
    with without_float64():
        with torch._subclasses.FakeTensorMode():
            assert not devices.has_float64(device)
        devices._computes.cache_clear()
        torch._dynamo.reset()
        compiled = torch.compile(lambda x: x.to(devices.most_precise(x.device)), backend="aot_eager", fullgraph=True)
        assert compiled(torch.ones(3).half().to(device)).dtype == FLOAT32
