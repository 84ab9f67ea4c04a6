"""naswot_score is the log-determinant of Mellor et al. (2021), and -inf for a singular kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory import needs_proc, peak_mib
from strategies import dense, examples, generator, nets, random_bits, seeds
from tolerances import FLOAT64_SUMS
from torch import Tensor, nn

from gatedops import GateBits, gate_agreement, naswot_score, record_gates

BITS = random_bits(6, dense(40, 33))


def kernel_of(bits: GateBits) -> np.ndarray:
    """Computes K_H = N - d_H of the whole patterns, as in the paper."""
    rows = torch.cat([gates.flatten(1) for gates in bits.unpack()], dim=1).numpy()
    return rows.shape[1] - (rows[:, None] != rows[None]).sum(-1).astype(np.float64)


def log_determinant(kernel: np.ndarray) -> float:
    return float(np.linalg.slogdet(kernel)[1])


def distinct_rows(n: int, specs: list, seed: int) -> GateBits:
    """Makes random gates with a layer of 200 in front, so that no two rows are equal and the kernel is far from
    singular."""
    return random_bits(n, [((200,), "gate"), *specs], seed)


@examples(15)
@given(st.sampled_from([1, 2, 5, 33, 64]), nets, seeds)
def test_the_score_is_the_log_determinant_of_gates_less_distances(n, specs, seed):
    bits = distinct_rows(n, specs, seed)
    assert math.isclose(naswot_score(bits), log_determinant(kernel_of(bits)), rel_tol=FLOAT64_SUMS)


class Cell(nn.Module):
    """A cell of NAS-Bench-201: four nodes, each the sum of an operation of every node before it."""

    def __init__(self, channels: int, operations: list[str]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(self.edge(channels, operation) for operation in operations)

    @staticmethod
    def edge(channels: int, operation: str) -> nn.Module:
        if operation in ("conv_1x1", "conv_3x3"):
            size = int(operation[-1])
            conv = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
            return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels))
        return nn.AvgPool2d(3, 1, 1) if operation == "avg_pool" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        edges, nodes = iter(self.edges), [x]
        for _ in range(3):
            nodes.append(sum(next(edges)(node) for node in nodes))
        return nodes[-1]


def cell_net(operations: list[str]) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    reduction = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
    head = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(stem, Cell(4, operations), reduction, Cell(8, operations), head)


def released_score(net: nn.Module, x: Tensor) -> float:
    """Computes the score as score_networks.py of BayesWatch/nas-without-training does: slogdet of K + K2 over every
    ReLU module in training mode."""
    net.train()
    kernel = np.zeros((len(x), len(x)))

    def count(module, inputs, output):
        nonlocal kernel
        on = (inputs[0].reshape(len(x), -1) > 0).float()
        kernel = kernel + (on @ on.T).numpy() + ((1 - on) @ (1 - on).T).numpy()

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, nn.ReLU)]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return log_determinant(kernel)


OPERATIONS = ["conv_1x1", "conv_3x3", "avg_pool", "skip"]


@pytest.mark.parametrize("seed", range(12))
def test_the_score_of_the_released_code(seed):
    drawn = torch.randint(4, (6,), generator=generator(seed)).tolist()
    net = cell_net([OPERATIONS[index] for index in drawn])
    x = torch.randn(16, 3, 8, 8, generator=generator(seed))
    bits = record_gates(net, x, batch_size=len(x), training=True)
    assert math.isclose(naswot_score(bits), released_score(net, x), rel_tol=FLOAT64_SUMS)
    evaluated = naswot_score(record_gates(net, x))
    assert not math.isclose(evaluated, naswot_score(bits), rel_tol=1e-4)  # training mode changes the score


def test_the_score_of_two_inputs():
    # With N = 5 and d = 2, K is [[5, 3], [3, 5]].
    bits = GateBits.pack([torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1]], dtype=torch.bool)])
    assert naswot_score(bits) == pytest.approx(math.log(16), rel=FLOAT64_SUMS)


def test_scores_of_layers_are_those_of_each_by_itself():
    bits = random_bits(9, dense(100, 200, 130))
    found = naswot_score(bits, per_layer=True)
    assert found == tuple(naswot_score(bits.select_layers([index])) for index in range(3))
    for index, score in enumerate(found):
        agreement = gate_agreement(bits)[index].double().numpy()
        assert math.isclose(score, log_determinant(agreement), rel_tol=FLOAT64_SUMS)


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_score_of_batches_is_their_mean(per_layer):
    bits = random_bits(50, dense(100, 200))
    batches = [np.array(naswot_score(bits[first : first + 16], per_layer=per_layer)) for first in (0, 16, 32)]
    found = naswot_score(bits, per_layer=per_layer, batch_size=16)  # the last two inputs do not fill a batch
    np.testing.assert_allclose(np.array(found), np.mean(batches, axis=0), rtol=FLOAT64_SUMS)
    assert naswot_score(bits, per_layer=per_layer, batch_size=50) == naswot_score(bits, per_layer=per_layer)


def test_one_singular_batch_makes_the_mean_minus_infinity():
    bits = random_bits(30, dense(100, 90))
    doubled = bits[torch.tensor([*range(30), 4, 4])]
    assert naswot_score(doubled, batch_size=16) == -math.inf
    assert naswot_score(doubled, batch_size=15) > -math.inf  # the two equal inputs do not fill a batch


@needs_proc
def test_a_data_set_needs_the_memory_of_one_batch():
    # The kernel of all 6,000 inputs would be 275 MiB.
    setup = "from gatedops import naswot_score\nbits = random_bits(6_000, dense(256))"
    assert peak_mib(setup, "naswot_score(bits[:n], batch_size=100)", sizes=(300, 6_000)) < 4


def test_equal_patterns_give_minus_infinity():
    bits = random_bits(30, dense(100, 90))
    doubled = bits[torch.tensor([*range(30), 4])]
    assert naswot_score(doubled) == -math.inf
    assert naswot_score(doubled, per_layer=True) == (-math.inf, -math.inf)


def test_layers_that_merge_inputs_do_not_make_the_net_singular():
    gates = torch.eye(6, dtype=torch.bool)
    bits = GateBits.pack([gates, torch.zeros(6, 4, dtype=torch.bool)])
    assert naswot_score(bits, per_layer=True)[1] == -math.inf
    assert naswot_score(bits) > 0


def test_more_inputs_than_gates_and_one_give_minus_infinity():
    for n, expected in [(4, True), (5, False)]:  # there are four gates, and all patterns differ
        patterns = torch.tensor([[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]])
        bits = GateBits.pack([patterns[: n + 1].bool()])
        assert (naswot_score(bits) > -math.inf) == expected


def test_dependent_patterns_that_differ_give_minus_infinity():
    """Uses two patterns and their complements: K_H a = 0 for a = (1, 1, -1, -1), although all four differ."""
    gates = torch.rand(2, 100, generator=generator(0)) < 0.5
    bits = GateBits.pack([torch.cat([gates[:1], ~gates[:1], gates[1:], ~gates[1:]])])
    assert abs(np.linalg.det(kernel_of(bits) / 100)) < FLOAT64_SUMS
    assert naswot_score(bits) == -math.inf


def test_the_determinant_of_integers_is_at_least_one():
    for seed in range(20):
        score = naswot_score(random_bits(4, dense(5), seed))
        assert score == -math.inf or score > -FLOAT64_SUMS


ERRORS = {
    "a tensor": (TypeError, "bits: got Tensor", lambda: naswot_score(BITS.words)),
    "no inputs": (ValueError, "bits: has no inputs", lambda: naswot_score(BITS[:0])),
    "a data set": (
        ValueError,
        "bits: has 30001 inputs, too many .* batch_size=128",
        lambda: naswot_score(BITS[torch.zeros(30_001, dtype=torch.int64)]),
    ),
    "a batch of none": (ValueError, r"batch_size: got 0, needs 1 \.\. 6", lambda: naswot_score(BITS, batch_size=0)),
    "a batch of more than all": (ValueError, "batch_size: got 7", lambda: naswot_score(BITS, batch_size=7)),
    "half an input": (TypeError, "batch_size: got 2.5", lambda: naswot_score(BITS, batch_size=2.5)),
    "a flag": (TypeError, "batch_size: got True", lambda: naswot_score(BITS, batch_size=True)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named(what):
    kind, message, call = ERRORS[what]
    with pytest.raises(kind, match=message):
        call()
