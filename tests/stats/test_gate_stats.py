"""Compares gate statistics, change, class overlap and kernel alignment with numpy on unpacked gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from memory import needs_proc, peak_mib
from numpy.typing import NDArray
from strategies import dense, densities, examples, generator, nets, random_bits, rows_of, seeds
from tolerances import FLOAT64_SUMS, assert_close_in_float64, assert_same_bits
from torch_threads import threads

import gatedops
from gatedops import GateBits, gate_stats, npk_gram, reference
from gatedops.stats import class_overlap, gate_change, npk_alignment, npk_alignments

Array = NDArray[np.float64]
MIXED = [((300,), "gate"), ((3, 65), "gate"), ((33, 2, 3), "gate"), ((4, 5, 2, 2), "select")]
BITS = random_bits(12, MIXED)
LABELS = [0, 1, 2] * 4

some_rows = st.sampled_from([1, 2, 3, 17, 64, 65, 130])


def unpacked(bits: GateBits) -> list[NDArray[np.bool_]]:
    """Returns one array (n, w) for each layer, and then all of them side by side."""
    layers = [gates.flatten(1).numpy() for gates in bits.unpack()]
    return [*layers, np.concatenate(layers, axis=1)]


# --- how often gates are on ---------------------------------------------------------------------------------


def test_statistics_of_four_inputs():
    gates = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0]], dtype=torch.bool)
    stats = gate_stats(GateBits.pack([gates, gates[:, :2]], names=["a", "b"]))
    a, b = stats.layers
    assert (a.name, b.name, stats.net.name) == ("a", "b", "net")
    assert a.on_per_gate.tolist() == [4, 0, 2, 2]
    assert a.on_per_input.tolist() == [3, 2, 2, 1]
    assert a.share_per_gate.tolist() == [1, 0, 0.5, 0.5]
    assert a.share_per_input.tolist() == [0.75, 0.5, 0.5, 0.25]
    assert (a.inputs, a.width, a.share_on, a.dead, a.always_on, a.entropy) == (4, 4, 0.5, 1, 1, 0.5)
    assert stats.net.on_per_input.tolist() == [4, 3, 3, 2]
    assert stats.net.summary() == {
        "share_on": 0.5,
        "dead": 2,
        "always_on": 2,
        "entropy": pytest.approx(1 / 3, rel=FLOAT64_SUMS),
    }


@examples(15)
@given(some_rows, nets, seeds, densities)
def test_statistics_are_those_of_the_unpacked_gates(n, specs, seed, density):
    bits = random_bits(n, specs, seed, density)
    stats = gate_stats(bits)
    for found, gates in zip((*stats.layers, stats.net), unpacked(bits), strict=True):
        share = gates.mean(0)
        on, off = share[share > 0], share[share < 1]
        entropy = -((on * np.log2(on)).sum() + ((1 - off) * np.log2(1 - off)).sum()) / len(share)
        assert_same_bits(found.on_per_gate.flatten(), torch.from_numpy(gates.sum(0, dtype=np.int64)))
        assert found.on_per_input.tolist() == gates.sum(1).tolist()
        assert found.share_on == gates.sum() / gates.size
        assert found.dead == (~gates).all(0).sum()
        assert found.always_on == gates.all(0).sum()
        assert math.isclose(found.entropy, entropy, rel_tol=FLOAT64_SUMS, abs_tol=FLOAT64_SUMS)


def test_counts_of_gates_have_the_shape_of_their_layer():
    stats = gate_stats(BITS)
    for layer, gates in zip(stats.layers, BITS.unpack(), strict=True):
        assert_same_bits(layer.on_per_gate, gates.sum(0))


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 3), 0), ((5, 4), 1), ((1, 4), 1), ((4, 1, 1), 0)], ids=str)
def test_channels_are_dead_where_all_their_gates_are(shape, axis):
    gates = torch.rand(6, *shape, generator=generator(0)) < 0.5
    gates.select(1 + axis, 2)[:] = False
    gates.select(1 + axis, 0)[:] = True
    gates[:, *(0 for _ in shape)] = False  # one gate is off in a channel whose other gates are on
    layer = gate_stats(GateBits.pack([gates, gates.flatten(1)])).layers[0]
    alone = layer.width // 4 == 1
    others = gates.movedim(1 + axis, 1).flatten(2).flatten(0, 0)
    assert layer.dead_channels == int((~others).all(2).all(0).sum()) == 1 + alone
    assert layer.always_on_channels == int(others.all(2).all(0).sum()) == 0
    gates.select(1 + axis, 3)[:] = True
    assert gate_stats(GateBits.pack([gates])).layers[0].always_on_channels == 1


def test_one_dead_channel_of_a_map_is_nine_dead_gates():
    gates = torch.rand(20, 4, 3, 3, generator=generator(0)) < 0.5
    gates[:, 2] = False
    layer = gate_stats(GateBits.pack([gates])).layers[0]
    assert (layer.dead, layer.dead_channels) == (9, 1)
    assert (layer.summary()["dead_channels"], layer.summary()["always_on_channels"]) == (1, 0)


def test_layers_without_positions_have_no_channels():
    bits = random_bits(12, [((300,), "gate"), ((4, 5, 2, 2), "select")])
    stats = gate_stats(bits)
    for part in (*stats.layers, stats.net):
        assert part.dead_channels is None
        assert part.always_on_channels is None
        assert set(part.summary()) == {"share_on", "dead", "always_on", "entropy"}


def test_a_mapped_file_has_the_same_statistics(tmp_path):
    BITS.save(tmp_path / "gates")
    mapped = gate_stats(GateBits.load(tmp_path / "gates", mmap=True))
    assert_same_bits(mapped.net.on_per_gate, gate_stats(BITS).net.on_per_gate)


def test_the_whole_net_follows_the_chosen_layers():
    stats = gate_stats(BITS.select_layers([3, 0]))
    assert stats.net.width == BITS.widths[3] + BITS.widths[0]
    assert_same_bits(stats.layers[1].on_per_gate, gate_stats(BITS).layers[0].on_per_gate)


@needs_proc
@pytest.mark.cpu_kernels
def test_statistics_unpack_nothing():
    # 30,000 rows of 2,048 gates take 58.6 MiB as bytes; the counts of the inputs are 30,000 numbers.
    setup = "from gatedops import gate_stats\nbits = random_bits(30_000, dense(2048))"
    assert peak_mib(setup, "gate_stats(bits[:n])", sizes=(300, 30_000)) < 4


# --- change between checkpoints -----------------------------------------------------------------------------


@examples(15)
@given(some_rows, nets, seeds, densities)
def test_change_is_the_hamming_distance_of_the_unpacked_gates(n, specs, seed, density):
    a, b = random_bits(n, specs, seed, density), random_bits(n, specs, seed + 1, 0.5)
    change = gate_change(a, b)
    pairs = zip(unpacked(a), unpacked(b), strict=True)
    for found, (before, after) in zip((*change.layers, change.net), pairs, strict=True):
        assert found.changed_per_gate.flatten().tolist() == (before != after).sum(0).tolist()
        assert found.distance == (before != after).sum()
        assert found.share == (before != after).sum() / before.size
    assert gate_change(b, a).net.distance == change.net.distance
    assert gate_change(a, a).net.distance == 0


@pytest.mark.parametrize("block_bytes", [1, 1000])
def test_change_over_many_blocks_is_the_same(monkeypatch, block_bytes):
    other = random_bits(12, MIXED, seed=1)
    whole = gate_change(BITS, other)
    monkeypatch.setattr("gatedops.stats.change._BLOCK_BYTES", block_bytes)
    for found, expected in zip(gate_change(BITS, other).layers, whole.layers, strict=True):
        assert_same_bits(found.changed_per_gate, expected.changed_per_gate)


def test_change_is_of_gates_and_not_of_where_they_lie():
    part, alone = BITS.select_layers([2]), GateBits.pack([random_bits(12, MIXED, seed=1).unpack()[2]])
    assert gate_change(part, alone).net.distance == gate_change(BITS, random_bits(12, MIXED, seed=1)).layers[2].distance


# --- overlap within and across classes ----------------------------------------------------------------------


def mean_overlaps(cosines: Array, labels: NDArray[np.int64]) -> tuple[Array, float, float]:
    """Returns means over the pairs of each two classes, over all pairs of one class, and over all pairs of two."""
    others = ~np.eye(len(labels), dtype=bool)
    same = labels[:, None] == labels[None]
    classes = np.unique(labels)
    per_class = np.full((len(classes), len(classes)), np.nan)
    for i, a in enumerate(classes):
        for j, b in enumerate(classes):
            pairs = (labels[:, None] == a) & (labels[None] == b) & others
            if pairs.any():
                per_class[i, j] = cosines[pairs].mean()
    return per_class, cosines[same & others].mean(), cosines[~same].mean()


@examples(12)
@given(st.sampled_from([3, 4, 17, 65, 130]), nets, seeds, densities, st.integers(2, 4))
def test_overlaps_are_means_over_all_pairs(n, specs, seed, density, classes):
    bits = random_bits(n, specs, seed, density)
    labels = torch.cat([torch.tensor([7, 7, -2]), torch.randint(classes, (n - 3,), generator=generator(seed))])
    found = class_overlap(bits, labels)
    assert found.classes == tuple(labels.unique().tolist())
    parts = [*(bits.select_layers([i]) for i in range(len(specs))), bits]
    for overlap, part in zip((*found.layers, found.net), parts, strict=True):
        cosines = npk_gram(None, part, normalize=True, dtype=torch.float64).numpy()
        per_class, within, across = mean_overlaps(cosines, labels.numpy())
        np.testing.assert_allclose(overlap.per_class.numpy(), per_class, rtol=0, atol=FLOAT64_SUMS)
        assert math.isclose(overlap.within, within, abs_tol=FLOAT64_SUMS)
        assert math.isclose(overlap.across, across, abs_tol=FLOAT64_SUMS)


def test_inputs_of_one_pattern_overlap_wholly():
    gates = torch.tensor([[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    found = class_overlap(GateBits.pack([gates]), [5, 3, 5, 3])
    assert found.classes == (3, 5)
    assert found.net.within == pytest.approx(1, rel=FLOAT64_SUMS)
    assert found.net.across == 0
    assert found.net.per_class.tolist() == [
        [pytest.approx(1, rel=FLOAT64_SUMS), 0],
        [0, pytest.approx(1, rel=FLOAT64_SUMS)],
    ]


def test_inputs_without_a_gate_overlap_with_none():
    gates = torch.tensor([[0, 0], [0, 0], [1, 0], [1, 0]], dtype=torch.bool)
    found = class_overlap(GateBits.pack([gates]), [0, 0, 1, 1]).net
    assert found.per_class.tolist() == [[0, 0], [0, pytest.approx(1, rel=FLOAT64_SUMS)]]


def frozen(values: list[int]) -> NDArray[np.int64]:
    array = np.array(values)
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [list, np.array, frozen, torch.tensor, lambda v: torch.tensor(v, dtype=torch.uint8)])
def test_labels_may_be_of_any_integer_kind(kind):
    found = class_overlap(BITS, kind(LABELS))
    assert found.net.within == class_overlap(BITS, torch.tensor(LABELS)).net.within


def deep_bits(n: int, depth: int, moved: float, shares: tuple[float, float] = (0.1, 0.1)) -> GateBits:
    """Makes gates in many layers for inputs that share most of their gates."""
    made, on = generator(0), torch.linspace(*shares, n)[:, None]
    gates = []
    for _ in range(depth):
        common = torch.rand(1, 64, generator=made).expand(n, 64)
        own = torch.rand(n, 64, generator=made)
        gates.append(torch.where(torch.rand(n, 64, generator=made) < moved, own, common) < on)
    return GateBits.pack(gates)


@pytest.mark.parametrize("shares", [(0.2, 0.2), (0.1, 0.95)], ids=["one pass", "several passes"])
def test_overlaps_of_hundreds_of_layers_do_not_underflow(shares):
    bits = deep_bits(6, 500, 0.002, shares)
    labels = np.array([0, 1, 0, 1, 0, 1])
    counts = gatedops.gate_overlap(bits).double()
    logs = counts.log2().sum(0)
    cosines = torch.exp2(logs - (logs.diagonal()[:, None] + logs.diagonal()) / 2).numpy()
    per_class, within, across = mean_overlaps(cosines, labels)
    found = class_overlap(bits, labels).net
    np.testing.assert_allclose(found.per_class.numpy(), per_class, rtol=1e-9, atol=1e-14)
    assert found.within == pytest.approx(within, rel=1e-9, abs=1e-14)
    assert found.across == pytest.approx(across, rel=1e-9, abs=1e-14)


def test_alignments_of_hundreds_of_layers_do_not_underflow():
    a, b = deep_bits(6, 500, 0.002), deep_bits(6, 500, 0.004)
    kernels = []
    for bits in (a, b):
        logs = gatedops.gate_overlap(bits).double().log2().sum(0)
        kernels.append(torch.exp2(logs - logs.max()).numpy())
    assert npk_alignment(a, b) == pytest.approx(alignment_of(*kernels), rel=1e-9)


@needs_proc
@pytest.mark.cpu_kernels
def test_overlaps_need_no_gram_in_memory():
    # 4,000^2 float64 numbers take 122 MiB.
    setup = "from gatedops.stats import class_overlap\nbits = random_bits(4_000, dense(32))"
    assert peak_mib(setup, "class_overlap(bits[:n], [0, 1] * (n // 2))", sizes=(300, 4_000)) < 24


# --- alignment of kernels -----------------------------------------------------------------------------------


def alignment_of(a: Array, b: Array) -> float:
    """Computes CKA by its definition: the cosine of the kernels with rows and columns centred."""
    centre = np.eye(len(a)) - 1 / len(a)
    a, b = centre @ a @ centre, centre @ b @ centre
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@examples(15)
@given(st.sampled_from([3, 17, 64, 65, 130]), nets, seeds, st.booleans(), st.sampled_from([1, 2, 3]))
@example(3, dense(1, 1), 4, False, 1)  # in a, each input has an off gate in one of the layers of a single gate
@example(3, dense(1, 1), 3, True, 2)  # the same holds in b
def test_alignment_is_the_cosine_of_the_centred_kernels(n, specs, seed, with_inputs, parts):
    # Without this layer, a net of single gates could have the same pattern for all inputs.
    specs = [((40,), "gate"), *specs]
    a, b = random_bits(n, specs, seed), random_bits(n, specs, seed + 1)
    block = -(-n // parts)
    x = rows_of(n, 9, seed) if with_inputs else None
    kernels = [reference.npk_gram(x, bits, dtype=torch.float64).numpy() for bits in (a, b)]
    found, with_itself = npk_alignment(a, b, x, block=block), npk_alignment(a, a, x, block=block)
    if any(np.ptp(kernel) == 0 for kernel in kernels):  # no path is active for any input
        assert math.isnan(found)
    else:
        assert math.isclose(found, alignment_of(*kernels), abs_tol=FLOAT64_SUMS)
    if np.ptp(kernels[0]) == 0:
        assert math.isnan(with_itself)
    else:
        assert math.isclose(with_itself, 1, rel_tol=FLOAT64_SUMS)


def test_alignments_of_many_checkpoints_are_those_of_each_two():
    checkpoints = [random_bits(50, MIXED, seed) for seed in range(4)]
    found = npk_alignments(checkpoints, block=16)
    expected = [[npk_alignment(a, b, block=16) for b in checkpoints] for a in checkpoints]
    assert_close_in_float64(found, torch.tensor(expected, dtype=torch.float64))
    assert_same_bits(found, found.T.contiguous())


def test_inputs_that_need_a_gradient_align_as_others():
    x = rows_of(12, 5)
    other = random_bits(12, MIXED, seed=1)
    assert npk_alignment(BITS, other, x.clone().requires_grad_()) == npk_alignment(BITS, other, x)


def test_a_constant_kernel_has_no_alignment():
    same = BITS[torch.zeros(12, dtype=torch.int64)]
    assert math.isnan(npk_alignment(same, BITS))
    assert math.isnan(npk_alignment(BITS[:1], BITS[:1]))
    dead = random_bits(12, MIXED, density=0.0)
    assert math.isnan(npk_alignment(BITS, dead))


def test_threads_do_not_change_an_alignment():
    a, b = random_bits(300, MIXED), random_bits(300, MIXED, seed=1)
    found = []
    for count in (1, 2):
        with threads(count):
            found.append(npk_alignment(a, b, block=100))
    assert found[0] == pytest.approx(found[1], rel=FLOAT64_SUMS)


@needs_proc
@pytest.mark.cpu_kernels
def test_alignment_needs_no_gram_in_memory():
    # 3,000^2 float64 numbers take 69 MiB, two blocks of 512 x 512 with their copies 12 MiB.
    setup = "from gatedops.stats import npk_alignment\nbits = random_bits(3_000, dense(32))"
    assert peak_mib(setup, "npk_alignment(bits[:n], bits[:n])", sizes=(300, 3_000)) < 32


# --- errors -------------------------------------------------------------------------------------------------

NONE, OTHER = BITS[:0], random_bits(12, dense(40))
ERRORS = {
    "statistics of a tensor": ("bits: got Tensor, needs a GateBits", lambda: gate_stats(BITS.words)),
    "statistics of no inputs": ("bits: has no inputs", lambda: gate_stats(NONE)),
    "change of a tensor": ("b: got Tensor", lambda: gate_change(BITS, BITS.words)),
    "change of no inputs": ("a: has no inputs", lambda: gate_change(NONE, NONE)),
    "change between other layers": (r"b: has 1 layer, a has 4; .*same shapes", lambda: gate_change(BITS, OTHER)),
    "change between other inputs": ("b: has 3 inputs, a has 12", lambda: gate_change(BITS, BITS[:3])),
    "overlap of no inputs": ("bits: has no inputs", lambda: class_overlap(NONE, [])),
    "too few labels": (r"labels: got shape \(3,\), needs \(12,\)", lambda: class_overlap(BITS, [0, 1, 1])),
    "labels of two dimensions": (
        r"labels: got shape \(12, 1\)",
        lambda: class_overlap(BITS, torch.zeros(12, 1).long()),
    ),
    "labels that are not integers": ("labels: got torch.float32", lambda: class_overlap(BITS, torch.rand(12))),
    "labels that are text": ("labels: got str", lambda: class_overlap(BITS, "abcdefghijkl")),
    "a single class": (r"labels: got classes of \[12\]", lambda: class_overlap(BITS, [1] * 12)),
    "classes of one input": ("labels: got classes", lambda: class_overlap(BITS, list(range(12)))),
    "alignment of other layers": ("b: has 1 layer, a has 4", lambda: npk_alignment(BITS, OTHER)),
    "alignment of other inputs": ("b: has 3 inputs", lambda: npk_alignment(BITS, BITS[:3])),
    "alignment of no inputs": ("a: has no inputs", lambda: npk_alignment(NONE, NONE)),
    "alignment with other inputs x": ("x: got shape", lambda: npk_alignment(BITS, BITS, torch.rand(3, 2))),
    "no block": ("block: got 0", lambda: npk_alignment(BITS, BITS, block=0)),
    "no checkpoints": ("checkpoints: got none", lambda: npk_alignments([])),
    "one checkpoint for a list": ("checkpoints: got a GateBits", lambda: npk_alignments(BITS)),
    "checkpoints of other inputs": (r"checkpoints\[1\]: has 3", lambda: npk_alignments([BITS, BITS[:3]])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named(what):
    message, call = ERRORS[what]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_the_package_exports_its_statistics():
    for name in ("gate_stats", "count_regions", "naswot_score"):
        assert getattr(gatedops, name) is getattr(gatedops.stats, name)
        assert name in gatedops.__all__
