"""gated_linear agrees with its specification: values bit for bit, gates, gradients of any order, and the memory
kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gated_layers import DTYPES, GATES, LEADING, MEMORY, gate_of, problem
from hypothesis import given
from hypothesis import strategies as st
from saved_tensors import saved_tensors
from strategies import dense, examples, random_bits, rows_of, special_values, widths
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch.nn.functional import linear
from torch_threads import threads

from gatedops import GateBits, gated_linear, pack_gates, reference

pytestmark = [
    pytest.mark.usefixtures("isa"),
    # torch warns of itself, because vmap calls the ops one by one.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


class Ours:
    gated_linear = staticmethod(gated_linear)


# --- values -----------------------------------------------------------------------------------------------------


@examples(40)
@given(
    leading=st.sampled_from(LEADING),
    inputs=st.sampled_from([1, 7, 64]),
    width=widths,
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(GATES),
    memory=st.sampled_from(sorted(MEMORY)),
    biased=st.booleans(),
)
def test_values_and_gates_are_those_of_the_specification(leading, inputs, width, dtype, kind, memory, biased):
    x, weight, bias = problem(leading, inputs, width, dtype)
    x, weight = (MEMORY[memory](t) if t.dim() > 1 else t for t in (x, weight))
    bias = bias if biased else None
    gate = gate_of(kind, leading, width, dtype)
    expected = reference.gated_linear(x, weight, bias, gate)
    assert_same_bits(gated_linear(x, weight, bias, gate), expected)
    if kind != "soft":
        y, bits = gated_linear(x, weight, bias, gate, return_gates=True)
        assert_same_bits(y, expected)
        assert bits == reference.gated_linear(x, weight, bias, gate, return_gates=True)[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_layers_have_the_bits_of_torch(dtype):
    x, weight, bias = problem((600,), 150, 257, dtype)
    assert_same_bits(gated_linear(x, weight, bias), linear(x, weight, bias).relu())


@pytest.mark.parametrize("inputs", [0, 5])
def test_a_layer_without_inputs_or_rows(inputs):
    for leading in ((4,), (0,), (3, 0)):
        x, weight, bias = (t.requires_grad_() for t in problem(leading, inputs, 33))
        y, bits = gated_linear(x, weight, bias, return_gates=True)
        y.sum().backward()
        assert_same_bits(y, linear(x, weight, bias).relu())
        assert bits.n == y[..., 0].numel()
        assert bias.grad.tolist() == (y > 0).reshape(-1, 33).sum(0).tolist()
        assert weight.grad.shape == weight.shape
        assert x.grad.shape == x.shape


def test_gates_of_a_network_select_a_layer_of_a_row():
    x, weight, bias = problem((6,), 5, 33)
    bits = random_bits(6, dense(40, 33, 300), seed=3)
    expected = torch.where(bits.unpack()[1], linear(x, weight, bias), 0)
    assert_same_bits(gated_linear(x, weight, bias, bits.select_layers([1])), expected)
    assert_same_bits(gated_linear(x, weight, bias, bits.select_layers(["1"])), expected)
    rows = torch.tensor([5, 0, 0])
    expected = torch.where(bits.unpack()[1][rows], linear(x[rows], weight, bias), 0)
    assert_same_bits(gated_linear(x[rows], weight, bias, bits[rows].select_layers([1])), expected)


@pytest.mark.parametrize("width", [33, 64, 70])
def test_gates_of_tokens_gate_tokens(width):
    x, weight, bias = problem((4, 3), 5, width)
    mask = gate_of("hard", (4, 3), width)
    expected = torch.where(mask, linear(x, weight, bias), 0)
    assert_same_bits(gated_linear(x, weight, bias, pack_gates(mask)), expected)
    assert_same_bits(gated_linear(x, weight, bias, pack_gates(mask.flatten(0, 1))), expected)


def special_problem(dtype):
    """Makes a layer whose products are NaN, infinities, zeros of both signs and the least number."""
    special = special_values(dtype)
    x = torch.ones(5, 1, dtype=dtype)
    return x, special.repeat(7)[:70].unsqueeze(1).contiguous(), special


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_gated_by_itself_passes_nan_on_with_its_gate_off(dtype):
    x, weight, _ = special_problem(dtype)
    y, bits = gated_linear(x, weight, return_gates=True)
    product = linear(x, weight)
    assert torch.equal(y.isnan(), product.isnan())
    assert_same_bits(y.nan_to_num(), product.relu().nan_to_num())
    assert torch.equal(bits.unpack()[0], product > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_outside_gate_that_is_off_gives_exactly_zero(dtype):
    x, weight, _ = special_problem(dtype)
    off = torch.zeros(5, 70, dtype=torch.bool)
    assert_same_bits(gated_linear(x, weight, None, off), torch.zeros(5, 70, dtype=dtype))
    product = linear(x, weight)
    y = gated_linear(x, weight, None, ~off)
    assert_same_bits(y.nan_to_num(), product.nan_to_num())
    assert torch.equal(y.isnan(), product.isnan())


def test_threads_and_repetition_do_not_change_a_bit():
    x, weight, bias = (t.requires_grad_() for t in problem((700,), 90, 300))
    gate = gate_of("soft", (700,), 300).requires_grad_()
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            results = [gated_linear(x, weight, bias), gated_linear(x, weight, bias, gate)]
            # Only the gradient of the bias is compared, because torch decides how it divides a matrix product among
            # threads.
            gradients = [torch.autograd.grad(y.square().sum(), [bias], retain_graph=True)[0] for y in results]
            found.append([*results, *gradients])
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert_same_bits(one, first)


# --- gradients --------------------------------------------------------------------------------------------------


def gradients(library, kind, dtype, compute, leading=(530,), cotangent=None):
    arguments = [t.to(compute).requires_grad_() for t in problem(leading, 40, 70, dtype)]
    gate = gate_of(kind, leading, 70, dtype)
    if kind == "soft":
        gate = gate.to(compute).requires_grad_()
        arguments.append(gate)
    x, weight, bias = arguments[:3]
    y = library.gated_linear(x, weight, bias, gate)
    y.backward(problem(leading, 70, 1, dtype, seed=3)[0].to(compute) if cotangent is None else cotangent)
    return [t.grad for t in arguments]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_good_as_torch(kind, dtype):
    # The product decides an own gate, and its sign depends on the dtype. So all three use one mask of that dtype.
    truth = gradients(reference, kind, dtype, torch.float64)
    if kind == "own":
        x, weight, bias = problem((530,), 40, 70, dtype)
        mask = linear(x, weight, bias) > 0

        class Masked:
            gated_linear = staticmethod(lambda x, w, b, _: reference.gated_linear(x, w, b, mask))

        truth = gradients(Masked, kind, dtype, torch.float64)
    ours, torchs = gradients(Ours, kind, dtype, dtype), gradients(reference, kind, dtype, dtype)
    for one, other, exact in zip(ours, torchs, truth, strict=True):
        if dtype == torch.float64:
            assert_close_in_float64(one, exact)
        else:
            assert_as_good_as_torch(one, other, exact)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", sorted(MEMORY))
@pytest.mark.parametrize("leading", [(), (9,), (1, 20), (2, 3), (1, 6, 5)], ids=str)
def test_gradients_of_inputs_of_any_strides(leading, memory, dtype, kind):
    x, weight, bias = problem(leading, 8, 33, dtype)
    gate = gate_of(kind, leading, 33, dtype)
    cotangent = problem(leading, 33, 1, dtype, seed=3)[0]
    found = []
    for inputs in (x, MEMORY[memory](x)):
        arguments = [inputs.detach(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        gated_linear(arguments[0].requires_grad_(), *arguments[1:], gate).backward(cotangent)
        found.append([t.grad for t in arguments])
    for ours, contiguous in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, contiguous)


@pytest.mark.parametrize("kind", GATES)
def test_cotangents_of_any_strides(kind):
    base = problem((530,), 70, 1, seed=3)[0]
    layouts = {"expanded": base[:1, :1].expand(530, 70), "transposed": base.T.contiguous().T}
    for cotangent in layouts.values():
        found = gradients(Ours, kind, torch.float32, torch.float32, cotangent=cotangent)
        expected = gradients(Ours, kind, torch.float32, torch.float32, cotangent=cotangent.contiguous())
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)


def small(kind, biased=True):
    """Returns the layer as a function of float64 arguments that need gradients, and these arguments."""
    arguments = [t.requires_grad_() for t in problem((2, 3), 4, 5, torch.float64)[: 3 if biased else 2]]
    gate = gate_of(kind, (2, 3), 5, torch.float64)
    if kind != "soft":
        return lambda x, w, b=None: gated_linear(x, w, b, gate), tuple(arguments)
    if biased:
        return gated_linear, (*arguments, gate.requires_grad_())
    return lambda x, w, g: gated_linear(x, w, None, g), (*arguments, gate.requires_grad_())


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("biased", [True, False])
def test_first_and_second_derivatives_are_right_in_both_modes(kind, biased):
    function, arguments = small(kind, biased)
    assert torch.autograd.gradcheck(function, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments, check_fwd_over_rev=True)


@pytest.mark.parametrize("kind", GATES)
def test_a_third_derivative_is_that_of_the_specification(kind):
    gate = gate_of(kind, (3,), 5, torch.float64)

    def third(library):
        arguments = [t.requires_grad_() for t in problem((3,), 4, 5, torch.float64)]
        value = (library.gated_linear(*arguments, gate) ** 3).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, arguments[0], create_graph=True)
            value = (gradient**2).sum()
        return gradient.detach()

    assert_close_in_float64(third(Ours), third(reference))


@pytest.mark.parametrize("kind", GATES)
def test_transformations_of_torch_func(kind):
    gate = gate_of(kind, (6,), 5, torch.float64)
    x, weight, bias = problem((6,), 4, 5, torch.float64)
    tangents = problem((6,), 4, 5, torch.float64, seed=1)

    def of(library):
        def layer(*arguments):
            return library.gated_linear(*arguments, gate).sin()

        return (
            torch.func.jvp(layer, (x, weight, bias), tuple(tangents))[1],
            torch.func.grad(lambda w: layer(x, w, bias).sum())(weight),
            torch.func.jacrev(lambda b: layer(x, weight, b))(bias),
            torch.func.hessian(lambda b: layer(x, weight, b).sum())(bias),
            torch.func.vmap(lambda w: layer(x, w, bias))(torch.stack([weight, 2 * weight])),
        )

    for ours, expected in zip(of(Ours), of(reference), strict=True):
        assert_close_in_float64(ours, expected)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_only_the_argument_that_asks_gets_a_gradient(kind, which):
    arguments = problem((5,), 4, 33)
    arguments[which].requires_grad_()
    gated_linear(*arguments, gate_of(kind, (5,), 33)).sum().backward()
    assert [t.grad is not None for t in arguments] == [index == which for index in range(3)]


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "hard"])
def test_a_hard_gate_keeps_the_inputs_and_one_bit_per_gate(kind):
    x, weight, bias = (t.requires_grad_() for t in problem((1000,), 64, 512))
    gate = gate_of(kind, (1000,), 512)
    saved, _ = saved_tensors(lambda: gated_linear(x, weight, bias, gate))
    words = [t for t in saved if t is not x and t is not weight]
    assert len(saved) == 3
    assert [t.dtype for t in words] == [torch.int32]
    assert words[0].nbytes == 1000 * 512 // 8


def test_given_gates_are_kept_where_they_are():
    x, weight, bias = problem((100,), 64, 512)
    bits = GateBits.pack([gate_of("hard", (100,), 512)])
    saved, _ = saved_tensors(lambda: gated_linear(x, weight.requires_grad_(), bias, bits))
    assert [t.data_ptr() for t in saved] == [x.data_ptr(), bits.words.data_ptr()]


def test_what_no_gradient_needs_is_not_kept():
    x, weight, bias = problem((100,), 64, 512)
    mask = gate_of("hard", (100,), 512)
    kept = []
    for index in range(3):
        arguments = [t.detach().requires_grad_(i == index) for i, t in enumerate((x, weight, bias))]
        saved, _ = saved_tensors(lambda given=arguments: gated_linear(*given, mask))
        kept.append({t.data_ptr() for t in saved if t.dtype != torch.int32})
    assert kept == [{weight.data_ptr()}, {x.data_ptr()}, set()]


def test_a_call_without_gradients_keeps_nothing():
    x, weight, bias = (t.requires_grad_() for t in problem((100,), 64, 512))
    with torch.no_grad():
        saved, y = saved_tensors(lambda: gated_linear(x, weight, bias))
    assert not saved
    assert not y.requires_grad


def test_gates_of_another_first_word_give_the_same_gradients():
    x, weight, bias = problem((50,), 20, 70)
    mask = gate_of("hard", (50,), 70)
    bits = GateBits.pack([~mask, mask])
    found = []
    for gate in (mask, bits.select_layers([1]), replace(bits, layers=bits.layers[1:])):
        leaf = x.clone().requires_grad_()
        gated_linear(leaf, weight, bias, gate).sum().backward()
        found.append(leaf.grad)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_rows_of_x_may_be_anything_that_is_linear_in_torch():
    x = rows_of(7, 12)
    weight = problem((7,), 12, 33)[1]
    assert_same_bits(gated_linear(x.T[:5].T, weight[:, :5]), linear(x[:, :5], weight[:, :5]).relu())
