"""soft_npk_gram has the right values and derivatives, and keeps to its memory (docs/math.md, section 5)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gram_problems import FLOATS
from hypothesis import given
from hypothesis import strategies as st
from memory import WORKSPACE_MIB, needs_proc, peak_mib
from strategies import dense, examples, generator, random_bits, rows_of, seeds
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch import Tensor
from torch.library import opcheck
from torch_threads import threads

from gatedops import npk_gram, reference, soft_npk_gram

# torch warns of itself, because vmap calls the ops one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

# These sizes lie around the edge of a tile, 128.
ROWS = st.sampled_from([0, 1, 2, 17, 127, 128, 129, 257])
ENOUGH = 40
WIDTHS = st.lists(st.sampled_from([1, 2, 15, 16, 17, 64, 130]), min_size=1, max_size=4)
OPS = torch.ops.gatedops


def soft_gates(n: int, *widths: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Makes sigmoid gates (n, w_l) of random pre-activations."""
    made = generator(seed)
    return [torch.sigmoid(4 * torch.randn(n, w, generator=made, dtype=torch.float64)).to(dtype) for w in widths]


def wide(x, gates, y, y_gates) -> np.ndarray:
    """Computes the Gram of scale "width" in numpy's long double (64-bit significand)."""
    gram = np.ones((len(gates[0]), len(y_gates[0])), dtype=np.longdouble)
    if x is not None:
        gram = x.numpy().astype(np.longdouble) @ y.numpy().astype(np.longdouble).T
    for left, right in zip(gates, y_gates, strict=True):
        p, q = (side.flatten(1).numpy().astype(np.longdouble) for side in (left, right))
        gram = gram * (p @ q.T / np.longdouble(p.shape[1]))
    return gram


def wide_truth(x, gates, y=None, y_gates=None, *, normalize=False) -> Tensor:
    """Returns the Gram computed in long double, rounded to float64."""
    y, y_gates = (x, gates) if y_gates is None else (y, y_gates)
    gram = wide(x, gates, y, y_gates)
    if normalize:
        rows, columns = wide(x, gates, x, gates).diagonal(), wide(y, y_gates, y, y_gates).diagonal()
        norms = np.sqrt(rows[:, None] * columns[None, :])
        gram = np.where(norms == 0, 0, gram / np.where(norms == 0, 1, norms))
    return torch.from_numpy(gram.astype(np.float64))


def assert_gram_is_good(x, gates, y=None, y_gates=None, *, dtype):
    ours = soft_npk_gram(x, gates, y, y_gates, dtype=dtype)
    baseline = reference.soft_npk_gram(x, gates, y, y_gates, dtype=dtype)
    assert_as_good_as_torch(ours, baseline, wide_truth(x, gates, y, y_gates))


# --- values -------------------------------------------------------------------------------------------------


def test_gram_is_that_of_all_listed_paths():
    rng = np.random.default_rng(0)
    widths = [3, 2, 4]
    x = rng.integers(-4, 5, (6, 2))
    gates = [rng.integers(0, 4, (6, width)) for width in widths]
    listed = [
        [
            x[row, node] * np.prod([gates[layer][row, unit] for layer, unit in enumerate(units)])
            for node, *units in itertools.product(range(2), *map(range, widths))
        ]
        for row in range(6)
    ]
    phi = torch.tensor(listed, dtype=torch.float64)
    tensors = [torch.from_numpy(gate).double() for gate in gates]
    for library in (soft_npk_gram, reference.soft_npk_gram):
        found = library(torch.from_numpy(x).double(), tensors, scale="none", dtype=torch.float64)
        assert_same_bits(found.long(), (phi @ phi.T).long())


@examples(40)
@given(ROWS, ROWS, st.sampled_from([None, 1, 5, 64]), WIDTHS, seeds, st.sampled_from(FLOATS))
def test_gram_is_as_good_as_torch(n, m, d, widths, seed, dtype):
    # torch's error is taken over at least ENOUGH rows, because over one or two entries torch may be exact by luck.
    rows, cols = max(n, ENOUGH), max(m, ENOUGH)
    gates, y_gates = (soft_gates(r, *widths, seed=seed + i, dtype=dtype) for i, r in enumerate((rows, cols)))
    x = y = None
    if d is not None:
        x, y = rows_of(rows, d, seed, dtype), rows_of(cols, d, seed + 1, dtype)
    top, left = (None if t is None else t[:k] for t, k in ((x, n), (y, m)))
    few, y_few = [gate[:n] for gate in gates], [gate[:m] for gate in y_gates]
    symmetric = soft_npk_gram(top, few, dtype=dtype)
    assert_same_bits(symmetric, symmetric.mT.contiguous())
    for ours, others in [
        (symmetric, (None, None)),
        (soft_npk_gram(top, few, left, y_few, dtype=dtype), (y, y_gates)),
    ]:
        baseline = reference.soft_npk_gram(x, gates, *others, dtype=dtype)
        found = baseline.clone()
        found[: ours.shape[0], : ours.shape[1]] = ours
        assert_as_good_as_torch(found, baseline, wide_truth(x, gates, *others))


@pytest.mark.parametrize("scale", ["none", "width", [0.5, 3.0], [-1.0, 2.0]], ids=str)
def test_every_scale_multiplies_each_layer(scale):
    x, gates = rows_of(150, 7, dtype=torch.float64), soft_gates(150, 9, 40)
    ours = soft_npk_gram(x, gates, scale=scale, dtype=torch.float64)
    assert_close_in_float64(ours, reference.soft_npk_gram(x, gates, scale=scale, dtype=torch.float64))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gates_of_zeros_and_ones_give_the_gram_of_hard_gates(dtype):
    bits, x = random_bits(300, dense(33, 65)), rows_of(300, 6).round()
    gates = [mask.to(dtype) for mask in bits.unpack()]
    hard = npk_gram(x, bits, scale="none", dtype=dtype)
    assert_same_bits(soft_npk_gram(x, gates, scale="none", dtype=dtype), hard)
    assert_same_bits(
        soft_npk_gram(None, gates, scale="none", dtype=dtype), npk_gram(None, bits, scale="none", dtype=dtype)
    )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_many_layers_and_tiles_are_as_good_as_torch(dtype):
    gates = soft_gates(600, *[33, 7, 64, 128, 1] * 2, dtype=dtype)
    assert_gram_is_good(rows_of(600, 20, dtype=dtype), gates, dtype=dtype)
    assert_gram_is_good(None, [gate[:300] for gate in gates], None, gates, dtype=dtype)


def test_gates_have_the_shapes_of_their_layers():
    shapes = [(10,), (4, 6), (3, 5, 2), (2, 3, 2, 2)]
    gates = [torch.rand(7, *shape, generator=generator(i)) for i, shape in enumerate(shapes)]
    flat = soft_npk_gram(None, [gate.flatten(1) for gate in gates])
    assert_same_bits(soft_npk_gram(None, gates), flat)
    assert_as_good_as_torch(flat, reference.soft_npk_gram(None, gates), wide_truth(None, gates))


@pytest.mark.parametrize("given_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_inputs_of_any_float_dtype_are_converted(given_dtype, dtype):
    x, gates = rows_of(50, 9, dtype=given_dtype), soft_gates(50, 33, 8, dtype=given_dtype)
    expected = soft_npk_gram(x.to(dtype), [gate.to(dtype) for gate in gates], dtype=dtype)
    assert_same_bits(soft_npk_gram(x, gates, dtype=dtype), expected)


def test_gates_and_x_may_have_any_strides():
    x, gates = rows_of(140, 9), soft_gates(140, 33, dtype=torch.float32)
    for strided in (lambda t: t.T.contiguous().T, lambda t: torch.stack([t, t], -1)[..., 0]):
        assert_gram_is_good(strided(x), [strided(gate) for gate in gates], dtype=torch.float32)
        assert_gram_is_good(None, [strided(gate) for gate in gates], dtype=torch.float32)
    assert_gram_is_good(None, [gates[0][:1].expand(140, 33)], dtype=torch.float32)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("with_x", [False, True])
def test_a_normalized_gram_has_ones_on_its_diagonal_and_zeros_for_empty_rows(with_x, dtype):
    gates, y_gates = soft_gates(150, 33, 9, dtype=dtype), soft_gates(40, 33, 9, seed=1, dtype=dtype)
    gates[1][7] = 0
    x, y = (rows_of(150, 5, 0, dtype), rows_of(40, 5, 1, dtype)) if with_x else (None, None)
    if with_x:
        x[11] = 0
    gram = soft_npk_gram(x, gates, normalize=True, dtype=dtype)
    assert_same_bits(gram, gram.mT.contiguous())
    empty = [7, 11] if with_x else [7]
    assert (gram[empty] == 0).all()
    assert (gram[:, empty] == 0).all()
    kept = [i for i in range(150) if i not in empty]
    diagonal = gram.diagonal()[kept].double()
    assert (diagonal - 1).abs().max() < 16 * torch.finfo(dtype).eps
    for others in [(None, None), (y, y_gates)]:
        ours = soft_npk_gram(x, gates, *others, normalize=True, dtype=dtype)
        baseline = reference.soft_npk_gram(x, gates, *others, normalize=True, dtype=dtype)
        assert_as_good_as_torch(ours, baseline, wide_truth(x, gates, *others, normalize=True))


def test_a_normalized_gram_of_rows_without_length_is_zero():
    gates = soft_gates(5, 3, 4)
    zeros = torch.zeros(5, 5, dtype=torch.float64)
    x = rows_of(5, 0, dtype=torch.float64)
    assert_same_bits(soft_npk_gram(x, gates, dtype=torch.float64), zeros)
    assert_same_bits(soft_npk_gram(x, gates, normalize=True, dtype=torch.float64), zeros)
    # A factor of 0 makes every K_ii 0.
    assert_same_bits(soft_npk_gram(None, gates, scale=[0.0, 1.0], normalize=True, dtype=torch.float64), zeros)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 5), (5, 0), (0, None)])
def test_no_rows_give_an_empty_result(n, m):
    gates, x = soft_gates(n, 3, 4, dtype=torch.float32), rows_of(n, 2)
    y_gates, y = (None, None) if m is None else (soft_gates(m, 3, 4, dtype=torch.float32), rows_of(m, 2))
    for normalize in (False, True):
        gram = soft_npk_gram(x, gates, y, y_gates, normalize=normalize)
        assert gram.shape == (n, n if m is None else m)


def test_threads_and_repetition_do_not_change_a_bit():
    gates, y_gates = (soft_gates(r, 33, 9, dtype=torch.float32) for r in (500, 270))
    x, y = rows_of(500, 12).requires_grad_(), rows_of(270, 12, 1)
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            grams = [soft_npk_gram(x, gates), soft_npk_gram(x, gates, y, y_gates)]
            grads = [torch.autograd.grad(gram.sin().sum(), x)[0] for gram in grams]
            found.append([gram.detach() for gram in grams] + grads)
    for others in found[1:]:
        for first, other in zip(found[0], others, strict=True):
            assert_same_bits(other, first)


# --- derivatives --------------------------------------------------------------------------------------------


class Ours:
    soft_npk_gram = staticmethod(soft_npk_gram)


def symmetric(library, normalize=False):
    """The symmetric Gram as a function of x, g_1 and g_2."""
    return lambda x, *g: library.soft_npk_gram(x, g, normalize=normalize, dtype=torch.float64)


def rectangular(library, normalize=False):
    """The Gram as a function of x, g_1, g_2, y, g'_1 and g'_2."""
    return lambda x, g, h, y, *others: library.soft_npk_gram(
        x, [g, h], y, others, normalize=normalize, dtype=torch.float64
    )


def sides(n: int = 5, m: int = 4) -> tuple[Tensor, ...]:
    """Makes x, g_1, g_2, y, g'_1 and g'_2 with a gate that is exactly 0."""
    tensors = []
    for seed, rows in enumerate((n, m)):
        gates = soft_gates(rows, 3, 2, seed=seed)
        gates[0][0, 1] = 0
        tensors += [rows_of(rows, 3, seed, torch.float64), *gates]
    return tuple(t.requires_grad_() for t in tensors)


@pytest.mark.parametrize("normalize", [False, True])
def test_derivatives_are_right_in_both_modes(normalize):
    tensors = sides()
    for function, inputs in [
        (symmetric(Ours, normalize), tensors[:3]),
        (rectangular(Ours, normalize), tensors),
        (lambda g: soft_npk_gram(None, [g], normalize=normalize, dtype=torch.float64), tensors[1:2]),
    ]:
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)


def test_a_layer_without_an_overlap_still_passes_gradients_to_it():
    # One layer has counts of 0, and dividing the product by them would give NaN.
    left = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    right = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[2.0]], dtype=torch.float64, requires_grad=True)
    gram = soft_npk_gram(None, [left, other], None, [right, torch.ones(1, 1)], scale="none", dtype=torch.float64)
    gram.sum().backward()
    assert gram.item() == 0
    assert left.grad.tolist() == [[0.0, 2.0]]
    assert other.grad.tolist() == [[0.0]]


def gradients(library, n: int, m: int | None, dtype: torch.dtype) -> list[Tensor]:
    """Returns the gradients of both sides' inputs and gates, for a loss that weighs every entry differently."""
    inputs = [rows_of(n, 12), *soft_gates(n, 40, 7, 130)]
    others = [] if m is None else [rows_of(m, 12, 1), *soft_gates(m, 40, 7, 130, seed=1)]
    inputs, others = ([t.to(dtype).requires_grad_() for t in side] for side in (inputs, others))
    y, y_gates = (others[0], others[1:]) if others else (None, None)
    library.soft_npk_gram(inputs[0], inputs[1:], y, y_gates, dtype=dtype).sin().sum().backward()
    return [t.grad for t in [*inputs, *others]]


@pytest.mark.parametrize(("n", "m"), [(300, None), (300, 140), (129, 257)])
def test_gradients_over_many_tiles_are_as_good_as_torch(n, m):
    for ours, torchs, truth in zip(
        gradients(Ours, n, m, torch.float32),
        gradients(reference, n, m, torch.float32),
        gradients(reference, n, m, torch.float64),
        strict=True,
    ):
        assert_as_good_as_torch(ours, torchs, truth)


@pytest.mark.parametrize("which", range(6))
def test_only_the_input_that_asks_gets_a_gradient(which):
    tensors = tuple(t.detach().requires_grad_(i == which) for i, t in enumerate(sides()))
    rectangular(Ours)(*tensors).square().sum().backward()
    assert [t.grad is not None for t in tensors] == [i == which for i in range(6)]
    found, tensors[which].grad = tensors[which].grad, None
    rectangular(reference)(*tensors).square().sum().backward()
    assert_close_in_float64(found, tensors[which].grad)


def test_torch_func_transforms_are_right():
    tensors = tuple(t.detach() for t in sides())
    tangents = tuple(torch.randn(t.shape, generator=generator(9), dtype=t.dtype) for t in tensors)
    for function, count in [(symmetric, 3), (rectangular, 6)]:
        for transform in (
            lambda f, count=count: torch.func.jvp(f, tensors[:count], tangents[:count])[1],
            lambda f, count=count: torch.func.grad(lambda *t: f(*t).sin().sum())(*tensors[:count]),
            lambda f, count=count: torch.func.jacrev(f)(*tensors[:count]),
            lambda f, count=count: torch.func.jacfwd(f)(*tensors[:count]),
        ):
            ours, truth = transform(function(Ours)), transform(function(reference))
            assert truth.abs().max() > 0
            assert_close_in_float64(ours, truth)


def test_a_second_derivative_is_refused_and_says_what_to_do():
    gate = soft_gates(4, 3)[0].requires_grad_()
    gram = soft_npk_gram(None, [gate], dtype=torch.float64)
    (first,) = torch.autograd.grad(gram.sin().sum(), gate, create_graph=True)
    with pytest.raises(RuntimeError, match=r"gatedops\.reference"):
        first.sum().backward()


# --- compile and autocast -----------------------------------------------------------------------------------


# torch warns of itself: from 2.14 on opcheck reads .grad of copies that it made.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("needs_grad", [False, True])
def test_ops_pass_opcheck(needs_grad):
    a, b = (torch.rand(r, 5, generator=generator(r)).requires_grad_(needs_grad) for r in (6, 4))
    grad = torch.rand(6, 4)
    opcheck(OPS.soft_npk_gram, (a, b, [2, 3], [0.5, 1.0]))
    opcheck(OPS.soft_npk_gram, (a, None, [2, 3], [0.5, 1.0]))
    opcheck(OPS.soft_npk_gram_backward, (grad, a.detach(), b.detach(), [2, 3], [0.5, 1.0]))
    opcheck(OPS.soft_npk_gram_backward, (torch.rand(6, 6), a.detach(), None, [2, 3], [0.5, 1.0]))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_compiled_gram_and_its_gradients_are_the_same(normalize):
    def loss(*tensors):
        return (symmetric(Ours, normalize)(*tensors[:3]) * 2).sin().sum() + rectangular(Ours)(*tensors).sum()

    torch._dynamo.reset()
    tensors = sides()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for found, expected in zip(
        torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(loss(*tensors), tensors), strict=True
    ):
        assert_close_in_float64(found, expected)


def test_autocast_leaves_the_dtype_asked_for():
    x, gates = rows_of(200, 9), soft_gates(200, 33, 8, dtype=torch.float32)
    plain = soft_npk_gram(x, gates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(soft_npk_gram(x, gates), plain)


# --- memory -------------------------------------------------------------------------------------------------

# 5,000^2 float32 numbers are 96 MiB, the gates stacked side by side 3 MiB: eight layers, one Gram.
CALLS = {
    "a Gram": ("soft_npk_gram(x[:n], [g[:n] for g in gates])", 96),
    "a Gram of two sides": ("soft_npk_gram(x[:n], [g[:n] for g in gates], x[:n], [g[:n] for g in gates])", 96),
    "a gradient": (
        "soft_npk_gram(x[:n].requires_grad_(), [g[:n] for g in gates]).backward(x[:1, :1].expand(n, n))",
        96,
    ),
}


@needs_proc
@pytest.mark.parametrize("what", CALLS)
def test_no_layer_has_a_gram_of_its_own_in_memory(what):
    setup = (
        "from gatedops import soft_npk_gram\nx, gates = torch.rand(5000, 4), [torch.rand(5000, 16) for _ in range(8)]"
    )
    call, result = CALLS[what]
    assert peak_mib(setup, call, sizes=(300, 5000)) < WORKSPACE_MIB + result


# --- errors -------------------------------------------------------------------------------------------------

N, M = 5, 3
X, Y, GATES = torch.rand(N, 2), torch.rand(M, 2), [torch.rand(N, 3), torch.rand(N, 4)]
Y_GATES = [torch.rand(M, 3), torch.rand(M, 4)]
NAN = float("nan")
ERRORS = {
    "gates are a tensor": ("gates", lambda: soft_npk_gram(X, GATES[0])),
    "gates are None": ("gates", lambda: soft_npk_gram(X, None)),
    "no gates": ("gates", lambda: soft_npk_gram(X, [])),
    "a layer is None": ("gates", lambda: soft_npk_gram(X, [GATES[0], None])),
    "a layer of bool": ("gates", lambda: soft_npk_gram(X, [GATES[0] > 0])),
    "a complex layer": ("gates", lambda: soft_npk_gram(X, [GATES[0].to(torch.complex64)])),
    "a 1-d layer": ("gates", lambda: soft_npk_gram(None, [GATES[0][:, 0]])),
    "a layer of width 0": ("gates", lambda: soft_npk_gram(X, [GATES[0][:, :0]])),
    "layers of other rows": ("gates", lambda: soft_npk_gram(X, [GATES[0], GATES[1][:2]])),
    "layers on two devices": ("gates", lambda: soft_npk_gram(X, [GATES[0], GATES[1].to("meta")])),
    "x of other rows": ("x", lambda: soft_npk_gram(X[:2], GATES)),
    "a 1-d x": ("x", lambda: soft_npk_gram(X[:, 0], GATES)),
    "x of integers": ("x", lambda: soft_npk_gram(X.byte(), GATES)),
    "x that is not a tensor": ("x", lambda: soft_npk_gram(X.tolist(), GATES)),
    "x on another device": ("x", lambda: soft_npk_gram(X.to("meta"), GATES)),
    "y without y_gates": ("y_gates", lambda: soft_npk_gram(X, GATES, Y)),
    "y_gates without y": ("y", lambda: soft_npk_gram(X, GATES, None, Y_GATES)),
    "y without x": ("x", lambda: soft_npk_gram(None, GATES, Y, Y_GATES)),
    "y of other columns": ("y", lambda: soft_npk_gram(X, GATES, Y[:, :1], Y_GATES)),
    "y of other rows": ("y", lambda: soft_npk_gram(X, GATES, Y[:2], Y_GATES)),
    "y_gates of other widths": ("y_gates", lambda: soft_npk_gram(X, GATES, Y, Y_GATES[::-1])),
    "y_gates of fewer layers": ("y_gates", lambda: soft_npk_gram(X, GATES, Y, Y_GATES[:1])),
    "y_gates that are a tensor": ("y_gates", lambda: soft_npk_gram(X, GATES, Y, Y_GATES[0])),
    "y_gates on another device": ("y_gates", lambda: soft_npk_gram(None, GATES, None, [g.to("meta") for g in Y_GATES])),
    "an unknown scale": ("scale", lambda: soft_npk_gram(X, GATES, scale="depth")),
    "scale is None": ("scale", lambda: soft_npk_gram(X, GATES, scale=None)),
    "scale is one number": ("scale", lambda: soft_npk_gram(X, GATES, scale=0.5)),
    "scale has one number too few": ("scale", lambda: soft_npk_gram(X, GATES, scale=[1.0])),
    "scale has one number too many": ("scale", lambda: soft_npk_gram(X, GATES, scale=[1.0] * 3)),
    "scale is not a number": ("scale", lambda: soft_npk_gram(X, GATES, scale=[1.0, NAN])),
    "scale has no numbers": ("scale", lambda: soft_npk_gram(X, GATES, scale=["a", "b"])),
    "dtype is bfloat16": ("dtype", lambda: soft_npk_gram(X, GATES, dtype=torch.bfloat16)),
    "dtype is an integer": ("dtype", lambda: soft_npk_gram(X, GATES, dtype=torch.int32)),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named(what):
    argument, call = ERRORS[what]
    with pytest.raises((ValueError, TypeError), match=rf"\b{argument}\b"):
        call()


RAW_CASES = {
    "a of another width": lambda a, b: OPS.soft_npk_gram(a[:, :4], None, [2, 3], [1.0, 1.0]),
    "b of another width": lambda a, b: OPS.soft_npk_gram(a, b[:, :4], [2, 3], [1.0, 1.0]),
    "b of another dtype": lambda a, b: OPS.soft_npk_gram(a, b.double(), [2, 3], [1.0, 1.0]),
    "no layers": lambda a, b: OPS.soft_npk_gram(a[:, :0], None, [], []),
    "a layer of no width": lambda a, b: OPS.soft_npk_gram(a, None, [5, 0], [1.0, 1.0]),
    "a layer of negative width": lambda a, b: OPS.soft_npk_gram(a, None, [6, -1], [1.0, 1.0]),
    "too few factors": lambda a, b: OPS.soft_npk_gram(a, None, [2, 3], [1.0]),
    "integers": lambda a, b: OPS.soft_npk_gram(a.int(), None, [2, 3], [1.0, 1.0]),
    "a 1-d a": lambda a, b: OPS.soft_npk_gram(a[0], None, [2, 3], [1.0, 1.0]),
    "a grad of another shape": lambda a, b: OPS.soft_npk_gram_backward(a, a, b, [2, 3], [1.0, 1.0]),
}


@pytest.mark.parametrize("what", RAW_CASES)
def test_the_raw_ops_refuse_what_would_leave_a_tensor(what):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        RAW_CASES[what](torch.rand(4, 5), torch.rand(3, 5))
