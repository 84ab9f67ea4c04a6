"""The programs of networks are short, and their numbers do not exceed 1, whatever the gates are."""

from __future__ import annotations

import pytest
import torch
from architectures import NETWORKS, conv, fc, network, relu
from modern_networks import MODERN
from recipes import Recipe, op
from tolerances import FLOAT64_SUMS

from gatedops.ops.conv_program import Instruction, Op, decode, encode
from gatedops.path_kernels.compile_steps import compile_steps
from gatedops.path_kernels.network import read_network, weighted_layers
from gatedops.path_kernels.program_builder import Program
from gatedops.reference import conv_gram as reference_conv

pytestmark = pytest.mark.usefixtures("exported_once")


def program_of(net: Recipe, sigma: float = 1.0, **options: bool) -> Program:
    found = read_network(net, net.inputs(1))
    sigmas = [sigma] * len(weighted_layers(found.steps))
    return compile_steps(found, sigmas, **({"tangent": False, "biases": False} | options))[0]


def kinds(program: Program) -> list[str]:
    return [Op(i.op).name for i in program.instructions]


@pytest.mark.parametrize("tangent", [False, True])
def test_a_chain_is_one_instruction_a_layer(tangent):
    assert kinds(program_of(network("flatten"), 0.3, tangent=tangent)) == ["INPUT", "BOX", "BOX", "TRACE", "ADD"]
    assert kinds(program_of(network("mean"), tangent=tangent)) == ["INPUT", "BOX", "BOX", "POOL", "ADD"]
    assert kinds(program_of(network("max-pool"), tangent=tangent)) == ["INPUT", "BOX", "SELECT", "BOX", "POOL", "ADD"]
    gates = [i.first >= 0 for i in program_of(network("mean"), tangent=tangent).instructions if i.op == Op.BOX]
    assert gates == [True, True]


def test_a_residual_block_reads_an_older_box_with_another_mask():
    program = program_of(network("residual, gate after addition"))
    assert kinds(program) == ["INPUT", "BOX", "GATE", "BOX", "BOX", "GATE", "ADD", "POOL", "ADD"]
    masks = {i.first for i in program.instructions if i.op in (Op.GATE, Op.BOX) and i.first >= 0}
    assert len(masks) == 4, "two blocks' own gates, those of the last, and those of the first and the last at once"
    assert [program.instructions[index].src for index in (2, 5)] == [1, 1]


def test_nothing_is_computed_twice_or_for_nothing():
    for name in NETWORKS:
        for tangent in (False, True):
            net = network(name)
            program = program_of(net, tangent=tangent, biases=net.has_paths_of_constants).instructions
            read = {register for i in program for register in (i.src, i.src2)}
            assert set(range(len(program) - 1)) <= read, name
            counted = [(i.op, i.src, i.first) for i in program if i.op in (Op.GATE, Op.SELECT)]
            assert len(set(counted)) == len(counted), name
            assert [i.dst for i in program] == list(range(len(program)))


def of_every_network() -> list[object]:
    """Returns every network with both kernels; the tangent kernels of modern networks take long."""
    return [
        pytest.param(name, tangent, marks=[pytest.mark.slow] if tangent and name in MODERN else [])
        for name in NETWORKS
        for tangent in (False, True)
    ]


@pytest.mark.parametrize(("name", "tangent"), of_every_network())
def test_no_register_exceeds_1(name, tangent):
    """Every mask is on, which is more than a max-pool can have, and pixels have the largest norm, 1."""
    net = network(name)
    program = program_of(net, 1.7, tangent=tangent, biases=net.has_paths_of_constants)
    columns = max(i.first + i.channels * i.height * i.width for i in program.instructions if i.op == Op.INPUT)
    x = torch.ones(1, columns, dtype=torch.float64)
    for i in program.instructions:
        if i.op == Op.INPUT:
            x[:, i.first : i.first + i.channels * i.height * i.width] = i.channels**-0.5
    words = torch.full((1, 16384), -1, dtype=torch.int32)
    for index, i in enumerate(program.instructions):
        pixels = i.out_height * i.out_width
        mean = Instruction(
            Op.TRACE, index + 1, index, scale=len(program.scalars), height=i.out_height, width=i.out_width
        )
        prefix = encode([*program.instructions[: index + 1], mean])
        value = reference_conv.conv_gram(x, words, None, None, prefix, [*program.scalars, 1 / pixels], torch.float64)
        windows = i.kernel_h * i.kernel_w if i.op == Op.SELECT else 1
        # The parts of a sum over masks with slopes may be negative.
        assert 0 < abs(value.item()) <= (1 + FLOAT64_SUMS) * windows**2, (index, Op(i.op).name)
        if windows > 1:
            return  # A real window never has all masks on, so all that follows would be too large.


def test_the_bound_is_reached():
    """With one channel and without padding the bound is reached up to its rounding to a power of two."""
    net = Recipe(
        [conv("a", "x", mode="circular", out=1), relu("b", "a"), op("m", "mean", "b"), fc("o", "m", 1)], (1, 3, 3)
    )
    program = program_of(net)
    x, words = torch.ones(1, 9, dtype=torch.float64), torch.full((1, 64), -1, dtype=torch.int32)
    value = reference_conv.conv_gram(x, words, None, None, program.encoded, program.scalars, torch.float64)
    assert 0.5 < value.item() <= 1
    assert value.item() * 2.0**program.exponent == 9.0


def test_encoding_is_invertible():
    program = program_of(network("residual, behind a max-pool"))
    assert decode(program.encoded) == list(program.instructions)
