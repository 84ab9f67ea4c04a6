"""count_regions counts distinct activation patterns exactly, also if many hashes are equal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, examples, generator, nets, random_bits, seeds

from gatedops import GateBits, count_regions, record_gates
from gatedops.stats import regions

MIXED = [((300,), "gate"), ((3, 65), "gate"), ((33, 2, 3), "gate"), ((4, 5, 2, 2), "select")]
BITS = random_bits(12, MIXED)

# Each of these keeps a part of the hash: all of it, one bit, or no bit.
HASHES = {"whole": lambda h: h, "one bit": lambda h: h % np.uint64(2), "constant": lambda h: h * np.uint64(0)}


@pytest.fixture(params=HASHES)
def _any_hash(request, monkeypatch):
    whole, cut = regions._hashes, HASHES[request.param]
    monkeypatch.setattr(regions, "_hashes", lambda words, multipliers: cut(whole(words, multipliers)))


any_hash = pytest.mark.usefixtures("_any_hash")


def patterns(bits: GateBits, chosen: list[int]) -> int:
    gates = bits.unpack()
    rows = torch.cat([gates[index].flatten(1) for index in chosen], dim=1)
    return len({bytes(row) for row in rows.numpy()})


def assert_counts_are_those_of_the_gates(bits: GateBits) -> None:
    every = list(range(len(bits.layers)))
    found = count_regions(bits)
    assert found.inputs == bits.n
    assert found.names == tuple(layer.name for layer in bits.layers)
    assert found.layers == tuple(patterns(bits, [index]) for index in every)
    assert found.net == patterns(bits, every)


@any_hash
@examples(12)
@given(st.sampled_from([1, 2, 17, 65, 200]), nets, seeds, st.sampled_from([1, 3, 20, 1000]))
def test_counts_are_those_of_a_set_of_patterns(n, specs, seed, kinds):
    few = random_bits(min(n, kinds), specs, seed)
    assert_counts_are_those_of_the_gates(few[torch.randint(few.n, (n,), generator=generator(seed))])


@any_hash
def test_patterns_that_differ_in_one_gate_are_not_merged():
    gates = torch.zeros(400, 2 * 197, dtype=torch.bool)
    gates[torch.arange(394), torch.arange(394)] = True
    bits = GateBits.pack([gates[:, :197], gates[:, 197:]])
    found = count_regions(bits)
    assert found.layers == (198, 198)  # the patterns have one gate on, or no gate
    assert found.net == 395


@any_hash
@pytest.mark.parametrize("block", [8, 100])
def test_blocks_do_not_change_a_count(monkeypatch, block):
    monkeypatch.setattr(regions, "_BLOCK_WORDS", block)
    assert_counts_are_those_of_the_gates(random_bits(30, MIXED)[torch.arange(90) % 30])


def test_all_hashes_equal_between_unlike_layers_stay_apart():
    # The same pattern is in one layer or the other. Equal hashes of the layers must not make the two inputs one region.
    gates = torch.eye(3, dtype=torch.bool)
    none = torch.zeros_like(gates)
    bits = GateBits.pack([torch.cat([gates, none]), torch.cat([none, gates])])
    assert count_regions(bits).net == 6


@pytest.mark.parametrize("chosen", [[0], [3], [2, 1], ["1", "3"], [-1]], ids=str)
def test_a_choice_of_layers_is_counted_together(chosen):
    bits = random_bits(60, [((4,), "gate"), ((2, 2), "gate"), ((3, 1, 1), "gate"), ((2, 2, 1, 1), "select")])
    found = count_regions(bits, chosen)
    assert found.net == patterns(bits, [int(key) for key in chosen])
    assert found == count_regions(bits.select_layers(chosen))


def test_inputs_along_a_line_cross_the_regions_of_a_layer():
    # The kinks of relu(x - k), k = 0 .. 9, cut the line into 11 pieces.
    net = torch.nn.Sequential(torch.nn.Linear(1, 10), torch.nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(1)
        net[0].bias.copy_(-torch.arange(10.0))
    x = torch.linspace(-5.03, 15, 2000).unsqueeze(1)
    assert count_regions(record_gates(net, x)).net == 11


def test_a_view_and_a_mapped_file_are_counted_in_place(tmp_path):
    BITS.save(tmp_path / "gates")
    assert count_regions(GateBits.load(tmp_path / "gates", mmap=True)) == count_regions(BITS)
    assert count_regions(BITS[::2]).net == 6


ERRORS = {
    "a tensor": (TypeError, "bits: got Tensor", lambda: count_regions(BITS.words)),
    "no inputs": (ValueError, "bits: has no inputs", lambda: count_regions(BITS[:0])),
    "no layers": (ValueError, "selection: got none", lambda: count_regions(BITS, [])),
    "an unknown layer": (ValueError, "selection: 'z'", lambda: count_regions(BITS, ["z"])),
    "a layer too many": (IndexError, "selection: layer 4", lambda: count_regions(BITS, [4])),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named(what):
    kind, message, call = ERRORS[what]
    with pytest.raises(kind, match=message):
        call()


def test_counts_of_one_layer_are_those_of_the_net():
    found = count_regions(random_bits(100, dense(5)))
    assert found.layers == (found.net,)
