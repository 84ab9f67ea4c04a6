"""record_gates finds the inputs in the tensors of a model, takes batches of any form, and names what does not fit."""

from __future__ import annotations

import functools
import random
import warnings
from collections import UserDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from forked import run_forked
from tolerances import assert_same_bits
from torch import Tensor, nn

from gatedops import GateBits, gated_twin, record_gates

# --- what no input changes, and where the inputs lie ---------------------------------------------------------------


class Scaled(nn.Module):
    """Applies ReLUs to the inputs, and also to a weight, a fresh tensor and a buffer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.a, self.w = nn.Linear(5, 6), nn.Parameter(torch.randn(size))
        self.register_buffer("b", torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        scale = F.relu(self.w * 2).sum() + F.relu(self.b.view(-1, 1)).sum() + F.relu(torch.ones(len(x)) - 0.5).mean()
        return F.relu(self.a(x) * scale)


@pytest.mark.parametrize("size", [2, 3])
def test_a_relu_of_a_weight_is_no_gate(size):
    net, x = Scaled(size), torch.randn(2, 5)
    bits = record_gates(net, x)
    scale = F.relu(net.w * 2).sum() + F.relu(net.b).sum() + 0.5
    assert [layer.shape for layer in bits.layers] == [(6,)]
    assert_same_bits(bits.unpack()[0], net.a(x) * scale > 0)
    assert torch.equal(gated_twin(net, net)(x), net(x))


def test_what_inputs_are_written_into_is_a_gate():
    class Written(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how, self.table = how, nn.Parameter(torch.randn(9, 5))

        def forward(self, x: Tensor) -> Tensor:
            if self.how == "item":
                held = torch.zeros(len(x), 5)
                held[:] = x
            elif self.how == "view":
                held = torch.zeros(len(x), 5)
                held.view(-1).copy_(x.flatten())
            elif self.how == "out":
                held = torch.empty(len(x), 5)
                torch.add(x, 0, out=held)
            elif self.how == "numpy":
                held = torch.from_numpy(x.numpy())
            else:  # the inputs choose through Python, which no call of torch shows
                held = torch.stack([self.table[int(row.argmax())] for row in x])
            return F.relu(held)

    x = torch.randn(4, 5)
    for how in ("item", "view", "out", "numpy"):
        assert_same_bits(record_gates(Written(how), x).unpack()[0], x > 0)
    chosen = Written("chosen")
    x = torch.eye(5)[:4]
    assert_same_bits(record_gates(chosen, x).unpack()[0], chosen.table[:4] > 0)


class Arranged(nn.Module):
    """Applies a ReLU to the tokens (n, T, C) in another arrangement."""

    def __init__(self, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.arrange, self.layer = arrange, nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.arrange(self.layer(x)))


ARRANGED = {
    "as they are": lambda q: q,
    "flattened tokens": lambda q: q.flatten(0, 1),
    "tokens first": lambda q: q.transpose(0, 1),
    "tokens first, flattened": lambda q: q.transpose(0, 1).flatten(0, 1),
}


@pytest.mark.parametrize("name", ARRANGED)
@pytest.mark.parametrize("tokens", [2, 3, 4])
def test_tokens_are_found_wherever_the_inputs_lie(name, tokens):
    net, x = Arranged(ARRANGED[name]), torch.randn(7, tokens, 5)
    # Now two axes have the same size, so the size does not tell which one holds the inputs.
    bits = record_gates(net, x, batch_size=tokens)
    q = torch.cat([net.layer(rows) for rows in x.split(tokens)])
    assert [layer.shape for layer in bits.layers] == [(tokens, 6)]
    assert_same_bits(bits.unpack()[0], q > 0)


def test_experts_that_see_all_inputs_are_found():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(torch.einsum("ni,eij->enj", x, self.weight)).sum(0)

    net, x = Experts(), torch.randn(4, 5)
    found = record_gates(net, x).unpack()[0]
    assert_same_bits(found, torch.einsum("ni,eij->nej", x, net.weight) > 0)


def test_images_of_a_video_are_a_volume():
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x.flatten(0, 1)))

    net, x = Video(), torch.randn(5, 2, 3, 6, 6)
    bits = record_gates(net, x)
    assert bits.layers[0].shape == (4, 2, 4, 4)
    q = torch.stack([net.conv(images) for images in x])
    assert_same_bits(bits.unpack()[0], q.transpose(1, 2) > 0)


class Mixed(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(x))


@pytest.mark.parametrize(
    "mix",
    [lambda x: x.mean(0), lambda x: x @ x.T, lambda x: x - x[0], lambda x: x.cumsum(0), lambda x: x.T, lambda x: x[:1]],
    ids=["mean over inputs", "products of inputs", "less the first", "sums of inputs", "transposed", "first input"],
)
@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_what_mixes_inputs_is_not_taken_for_rows(mix, n):
    net, x = Mixed(mix), torch.randn(n, n)
    if n > 1 and torch.equal(mix(x), x.T.contiguous()):
        assert_same_bits(record_gates(net, x).unpack()[0], x > 0)  # the inputs are the second axis
        return
    if n == 1:
        return  # a single input cannot mix with others
    with pytest.raises(ValueError, match=r"model: relu works on .* (not found|change places).*record_gates\(part"):
        record_gates(net, x)


def test_experts_that_see_some_inputs_are_refused_with_a_remedy():
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.ReLU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            result, choice = x.new_zeros(len(x), 6), (x[:, 0] > 0).long()
            for index, expert in enumerate(self.experts):
                rows = choice == index
                result[rows] = expert(x[rows])
            return result

    torch.manual_seed(1)
    x = torch.randn(64, 5)
    with pytest.raises(ValueError, match=r"experts\.\d\.1 works on .*expert.*record_gates\(part, its inputs\)"):
        record_gates(Routed(), x)


def test_random_layers_do_not_hide_the_rows():
    net = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.ReLU())
    x = torch.randn(20, 5)
    state = torch.get_rng_state()
    bits = record_gates(net, x, training=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (bits.unpack()[0] & ~(net[0](x) > 0)).sum() == 0
    assert 0 < bits.unpack()[0].sum() < (net[0](x) > 0).sum()


def test_a_model_of_one_number_of_rows_is_recorded():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(x).view(8, 6))

    net, x = Fixed(), torch.randn(8, 5)
    assert_same_bits(record_gates(net, x).unpack()[0], net.layer(x) > 0)


class Sorted(nn.Module):
    """Sorts its inputs by length, as for packed sequences, and returns the results in the original order."""

    def __init__(self, by: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.by, self.layer = by, nn.Linear(5, 8)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        order = self.by(lengths)
        return F.relu(self.layer(x[order]))[order.argsort()]


@pytest.mark.parametrize("lengths", [[3, 3, 3, 9, 2, 7, 1, 8], [4, 3, 5, 9, 2, 7, 1, 8]])
@pytest.mark.parametrize(
    "by",
    [lambda lengths: lengths.argsort(descending=True, stable=True), lambda lengths: torch.randperm(len(lengths))],
    ids=["sorted", "shuffled"],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_changes_the_order_of_its_inputs_is_refused(lengths, by, seed):
    torch.manual_seed(seed)
    given = {"x": torch.randn(8, 5), "lengths": torch.tensor(lengths)}
    with pytest.raises(ValueError, match=r"relu works on \(8, 8\) for a batch of 8 inputs.*sorts, shuffles or mixes"):
        record_gates(Sorted(by), given, call=lambda model, batch: model(**batch))


def test_one_huge_value_hides_no_order():
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            n, tokens, _ = x.shape
            q, k = (f(x).view(n, tokens, 2, 4).permute(2, 0, 1, 3).reshape(2 * n, tokens, 4) for f in (self.q, self.k))
            later = torch.triu(torch.ones(tokens, tokens, dtype=torch.bool), 1)
            return F.relu((q @ k.transpose(1, 2)).masked_fill(later, -1e9))

    net, x = Causal(), torch.randn(6, 5, 4)
    q, k = (f(x).view(6, 5, 2, 4).transpose(1, 2) for f in (net.q, net.k))
    scores = (q @ k.transpose(2, 3)).masked_fill(torch.triu(torch.ones(5, 5, dtype=torch.bool), 1), -1e9)
    assert_same_bits(record_gates(net, x).unpack()[0], scores > 0)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.TransformerEncoderLayer(6, 2, 5), (9, 6)),
        (nn.TransformerEncoderLayer(6, 2, 5), (9, 4, 6)),
        (nn.Sequential(nn.Linear(4, 50), nn.BatchNorm1d(50, track_running_stats=False), nn.ReLU()), (9, 4)),
        (nn.Sequential(nn.Linear(4, 50), nn.BatchNorm1d(50, track_running_stats=False), nn.ReLU()), (2, 4)),
        (nn.Sequential(nn.Linear(4, 50), nn.BatchNorm1d(50, track_running_stats=False), nn.ReLU()), (3, 4)),
    ],
)
def test_inputs_that_change_each_others_gates_are_warned_of(net, shape):
    with pytest.warns(UserWarning, match=r"change each other's gates, first in (relu|2): .*batch_first=True"):
        record_gates(net, torch.randn(shape))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_gates(nn.TransformerEncoderLayer(6, 2, 5, batch_first=True), torch.randn(9, 4, 6))
        if isinstance(net, nn.Sequential):
            record_gates(net, torch.randn(shape), training=True)


def test_the_nodes_of_a_graph_are_rows():
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 6)
            self.register_buffer("edges", torch.rand(8, 8))

        def forward(self, x: Tensor, edges: Tensor | None = None) -> Tensor:
            return F.relu((self.edges if edges is None else edges) @ self.layer(x))

    net, x = Graph(), torch.randn(8, 5)
    assert_same_bits(record_gates(net, x).unpack()[0], net.edges @ net.layer(x) > 0)
    given = {"x": x, "edges": torch.rand(8, 8)}
    bits = record_gates(net, given, call=lambda model, batch: model(**batch))
    assert_same_bits(bits.unpack()[0], given["edges"] @ net.layer(x) > 0)


def test_vmap_inside_a_model_is_refused_with_a_sentence():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Sequential(nn.Linear(5, 6), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return torch.func.vmap(self.layer)(x)

    with pytest.raises(ValueError, match=r"layer\.1 runs inside torch\.func.*whole batch"):
        record_gates(Mapped(), torch.randn(4, 5))


# --- volumes, several inputs, training mode ------------------------------------------------------------------------


def test_gates_of_volumes():
    net, x = (
        nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 60, 2)),
        torch.randn(4, 2, 4, 5, 6),
    )
    bits = record_gates(net, x, batch_size=3)
    assert bits.layers[0].shape == (3, 3, 4, 5)
    assert_same_bits(bits.unpack()[0], net[0](x) > 0)
    assert bits == GateBits.pack([net[0](x)], names=["1"], kinds=["gate"])


class Pair(NamedTuple):
    x: Tensor
    other: Tensor


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(3, 6)

    def forward(self, x: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
        return F.relu(self.a(x) * scale + self.b(other))


def test_dicts_and_several_inputs():
    net, x, other = Two(), torch.randn(7, 5), torch.randn(7, 3)
    expected = net.a(x) + net.b(other) > 0
    given = {"x": x, "other": other}
    by_name = functools.partial(record_gates, net, call=lambda model, batch: model(**batch))
    assert_same_bits(by_name(given, batch_size=3).unpack()[0], expected)
    assert_same_bits(
        by_name([{"x": x[:4], "other": other[:4]}, {"x": x[4:], "other": other[4:]}]).unpack()[0], expected
    )
    batches = [(x[:4], other[:4], "labels"), (x[4:], other[4:], "labels")]
    pairs = record_gates(net, batches, call=lambda model, batch: model(batch[0], batch[1]))
    assert_same_bits(pairs.unpack()[0], expected)
    mixed = {"x": x, "other": other.numpy(), "scale": 1.0, "shared": {"none": None, "z": torch.ones(2)}}
    call = lambda model, batch: model(batch["x"], batch["other"], batch["scale"])  # noqa: E731
    assert_same_bits(record_gates(net, mixed, 3, call=call).unpack()[0], expected)
    named = Pair(x, other)
    assert_same_bits(
        record_gates(net, named, 3, call=lambda model, batch: model(batch.x, batch.other)).unpack()[0], expected
    )
    tuples = record_gates(net, (x, other), 3, call=lambda model, batch: model(*batch))
    assert_same_bits(tuples.unpack()[0], expected)
    scaled = record_gates(net, x, call=lambda model, batch: model(batch, other[:1], scale=2.0))
    assert_same_bits(scaled.unpack()[0], 2 * net.a(x) + net.b(other[:1]) > 0)


def test_dicts_of_their_own_class():
    class Encoding(UserDict):
        def __getattr__(self, name: str) -> Tensor:
            return self.data[name]

    net, x, other = Two(), torch.randn(7, 5), torch.randn(7, 3)
    given = Encoding({"x": x, "other": other})
    bits = record_gates(net, given, 4, call=lambda model, batch: model(batch.x, batch["other"]))
    assert_same_bits(bits.unpack()[0], net.a(x) + net.b(other) > 0)


def test_other_batches_need_a_call():
    x, other = torch.randn(7, 5), torch.randn(7, 3)
    with pytest.raises(TypeError, match=r"data: got dict.*call=lambda"):
        record_gates(Two(), {"x": x, "other": other})
    with pytest.raises(TypeError, match=r"data: batch 0 is dict.*call=lambda"):
        record_gates(Two(), [{"x": x}])
    with pytest.raises(TypeError, match="call: got bool"):
        record_gates(Two(), x, call=True)
    with pytest.raises(ValueError, match="data: batch 0 is dict, needs to hold a tensor"):
        record_gates(Two(), [{"x": 3}], call=lambda model, batch: model(**batch))
    with pytest.raises(ValueError, match="got a dict without a tensor"):
        record_gates(Two(), {"x": 3.0}, call=lambda model, batch: model(**batch))
    with pytest.raises(TypeError, match=r"data: got a tuple of tensors.*call=.*list"):
        record_gates(nn.Sequential(nn.Linear(5, 5), nn.ReLU()), (x, x))


def test_training_mode_takes_the_statistics_of_the_batch_and_leaves_the_model_as_it_was():
    net, x = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).eval(), torch.randn(9, 5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    bits = record_gates(net, x, training=True)
    q = net[0](x)
    assert_same_bits(bits.unpack()[0], (q - q.mean(0)) / q.std(0, correction=0) > 0)
    assert not any(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_numpy_inputs():
    net, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU()), torch.randn(9, 5)
    assert record_gates(net, x.numpy(), 4) == record_gates(net, x, 4)
    assert record_gates(net, [x.numpy()]) == record_gates(net, x)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda net: nn.DataParallel(torch.compile(net))])
def test_wrappers_leave_names_and_gates_as_they_are(wrap):
    net, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU()), torch.randn(9, 5)
    assert record_gates(wrap(net), x, 4) == record_gates(net, x, 4)
    inside = nn.Sequential(torch.compile(net), nn.Linear(6, 2))
    assert [layer.name for layer in record_gates(inside, x).layers] == ["0.1"]


# --- inputs that the model does not take ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16, torch.uint8])
def test_another_dtype_is_named(dtype):
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    with pytest.raises(TypeError, match=f"data: got {dtype}, the model works in torch.float32; convert"):
        record_gates(net, torch.ones(3, 5).to(dtype))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (nn.Sequential(nn.Linear(5, 6), nn.ReLU()), (3, 4)),
        (nn.Sequential(nn.Linear(5, 6), nn.ReLU()), (3,)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), (3, 2, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), (3, 5)),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), (3, 3, 2, 2)),
        (nn.Sequential(nn.LayerNorm(5), nn.ReLU()), (3, 4)),
        (nn.Sequential(nn.BatchNorm1d(5), nn.ReLU()), (3, 4)),
        (nn.Sequential(nn.RNN(5, 6, nonlinearity="relu")), (3, 2, 4)),
    ],
)
def test_another_shape_is_named(net, shape):
    with pytest.raises(ValueError, match=rf"data: the model does not take inputs of shape \({shape[0]},"):
        record_gates(net, torch.randn(shape))


def test_a_model_that_converts_its_inputs_takes_any_dtype():
    class Converts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(x.float()))

    x = torch.randn(3, 5)
    assert record_gates(Converts(), x.double()).n == 3


def test_what_else_a_model_raises_goes_through():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match=r"^of its own$"):
        record_gates(Fails(), torch.randn(3, 5))


def test_nothing_imports_the_compiler_of_torch():
    program = (
        "import sys, torch, gatedops\n"
        "net, x = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.ReLU()), torch.randn(9, 5)\n"
        "gatedops.record_gates(net, x), gatedops.gated_twin(net)(x), gatedops.fuse_relu(net, x)\n"
        "found = 'torch._dynamo' in sys.modules\n"
    )
    assert run_forked(program, "found", "torch") is False


def test_a_lazy_layer_is_refused_and_left_as_it_was():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(
        ValueError, match=r"model: 0\.weight of a lazy layer has no size yet; call the model on a batch"
    ):
        record_gates(net, torch.randn(3, 5))
    net(torch.randn(3, 5))
    assert net[0].in_features == 5


def test_random_numbers_drawn_while_rows_are_looked_for_are_drawn_again():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x + random.random() + np.random.rand() + torch.rand(()))

    x = torch.randn(9, 5)
    for module in (random, np.random, torch):
        getattr(module, "manual_seed", module.seed)(0)
    expected = Noisy()(x) > 0
    for module in (random, np.random, torch):
        getattr(module, "manual_seed", module.seed)(0)
    assert_same_bits(record_gates(Noisy(), x).unpack()[0], expected)
