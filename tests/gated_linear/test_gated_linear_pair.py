"""gated_linear_pair agrees with its specification: values, gates, gradients, frozen networks, and the variant that
writes into a buffer."""

from __future__ import annotations

import pytest
import torch
from gated_layers import DTYPES, IDS, KINDS, LEADING, MEMORY, pair_problem
from hypothesis import given
from hypothesis import strategies as st
from saved_tensors import saved_tensors
from strategies import dense, examples, generator, special_values, widths
from tolerances import assert_as_good_as_torch, assert_close_in_float64, assert_same_bits
from torch.nn.functional import linear
from torch_threads import threads

from gatedops import GateBits, gated_linear_pair, npk_gram, reference

pytestmark = [
    pytest.mark.usefixtures("isa"),
    # torch warns of itself, because vmap calls the ops one by one.
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


class Ours:
    gated_linear_pair = staticmethod(gated_linear_pair)


def graded(*places, **options):
    """Returns the arguments; those at these places need a gradient."""
    return [t.requires_grad_(index in places) for index, t in enumerate(pair_problem(**options))]


# --- values -----------------------------------------------------------------------------------------------------


@examples(40)
@given(
    leading=st.sampled_from(LEADING),
    inputs=st.sampled_from([(1, 7), (64, 3)]),
    width=widths,
    dtype=st.sampled_from(DTYPES),
    feature=st.sampled_from(["relu", "linear"]),
    memory=st.sampled_from(sorted(MEMORY)),
    biased=st.tuples(st.booleans(), st.booleans()),
)
def test_hard_gates_give_the_bits_of_the_specification(leading, inputs, width, dtype, feature, memory, biased):
    h, w_f, b_f, z, w_v, b_v = pair_problem(leading, inputs, width, dtype)
    h, w_f, z, w_v = (MEMORY[memory](t) if t.dim() > 1 else t for t in (h, w_f, z, w_v))
    arguments = (h, w_f, b_f if biased[0] else None, z, w_v, b_v if biased[1] else None)
    ours = gated_linear_pair(*arguments, feature=feature)
    expected = reference.gated_linear_pair(*arguments, feature=feature)
    assert_same_bits(ours[0], expected[0])
    assert_same_bits(ours[1], expected[1])
    assert ours[2] == expected[2]


@pytest.mark.parametrize("feature", ["relu", "linear"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_gates_are_as_good_as_torch(dtype, feature):
    # beta and gain are powers of two, which are exact in every dtype, so they are the same for all three.
    options = {"gate": "soft", "beta": 4.0, "gain": 0.5, "feature": feature}
    arguments = pair_problem((130,), width=257, dtype=dtype)
    ours, torchs = (f(*arguments, **options) for f in (gated_linear_pair, reference.gated_linear_pair))
    truth = reference.gated_linear_pair(*[t.double() for t in arguments], **options)
    assert_same_bits(ours[0], torchs[0])
    assert ours[2] == torchs[2]
    if dtype == torch.float64:
        assert_close_in_float64(ours[1], truth[1])
    else:
        assert_as_good_as_torch(ours[1], torchs[1], truth[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_soft_gate_is_a_sigmoid_from_end_to_end(dtype):
    """The argument of the sigmoid is q itself, over its whole range with special values; v is 1."""
    q = torch.cat([torch.linspace(-800, 800, 3001, dtype=torch.float64).to(dtype), special_values(dtype)])
    one = torch.ones(1, 1, dtype=dtype)
    weights = (q.unsqueeze(1), None, one, torch.ones_like(q).unsqueeze(1), None)
    for beta in (1.0, 0.125):
        _, z, _ = gated_linear_pair(one, *weights, gate="soft", beta=beta, gain=2.0)
        expected = 2 * torch.sigmoid(beta * q)
        assert torch.equal(z[0].isnan(), q.isnan())
        wrong = (z[0] - expected).nan_to_num().abs() / expected.nan_to_num().clamp(min=1e-30)
        assert wrong.max() <= 8 * torch.finfo(dtype).eps


def test_an_off_gate_gives_exactly_zero_whatever_the_value_network_has():
    h, w_f, b_f, *_ = pair_problem((9,), width=70)
    special = special_values(torch.float32).repeat(6)[:70].unsqueeze(1)
    h_next, z_next, bits = gated_linear_pair(h, w_f, b_f, torch.ones(9, 1), special, None)
    on = bits.unpack()[0]
    assert_same_bits(z_next[~on], torch.zeros(int((~on).sum())))
    assert z_next[on].isnan().any()
    assert_same_bits(h_next, linear(h, w_f, b_f).relu())


def test_nan_in_the_feature_network_passes_on_with_its_gate_off():
    h, w_f, b_f, z, w_v, b_v = pair_problem((9,), width=70)
    h[3, 0] = torch.nan
    h_next, z_next, bits = gated_linear_pair(h, w_f, b_f, z, w_v, b_v)
    assert h_next[3].isnan().all()
    assert not bits.unpack()[0][3].any()
    assert_same_bits(z_next[3], torch.zeros(70))


@pytest.mark.cpu_kernels
def test_threads_and_repetition_do_not_change_a_bit():
    found = []
    for count in (1, 2, 3, 2):
        with threads(count):
            arguments = graded(2, 5, leading=(700,), width=300)
            h, z, bits = gated_linear_pair(*arguments, gate="soft")
            (h.square().sum() + z.square().sum()).backward()
            found.append([h.detach(), z.detach(), bits.words, arguments[2].grad, arguments[5].grad])
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert_same_bits(one, first)


# --- gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gradients_are_as_good_as_torch(kind, dtype):
    options = {"leading": (530,), "dtype": dtype}
    mask = reference.gated_linear_pair(*pair_problem(**options))[2].unpack()[0]

    def masked(h, w_f, b_f, z, w_v, b_v, **_):
        """Computes the float64 problem with the gates that q has in dtype."""
        q, v = linear(h, w_f, b_f), linear(z, w_v, b_v)
        h_next = torch.where(mask, q, 0) if kind["feature"] == "relu" else q
        return h_next, torch.where(mask, v, 0) if kind["gate"] == "hard" else v * torch.sigmoid(4 * q)

    def gradients(function, compute):
        arguments = [t.to(compute).requires_grad_() for t in pair_problem(**options)]
        h, z, *_ = function(*arguments, **kind)
        made = generator(5)
        cotangents = [torch.randn(h.shape, generator=made, dtype=torch.float64).to(dtype) for _ in range(2)]
        torch.autograd.backward([h, z], [c.to(compute) for c in cotangents])
        return [t.grad for t in arguments]

    truth = gradients(masked, torch.float64)
    torchs = gradients(reference.gated_linear_pair, dtype)
    for ours, other, exact in zip(gradients(gated_linear_pair, dtype), torchs, truth, strict=True):
        if dtype == torch.float64:
            assert_close_in_float64(ours, exact)
        else:
            assert_as_good_as_torch(ours, other, exact)


SMALL = {"leading": (4,), "inputs": (3, 2), "width": 5, "dtype": torch.float64}
GRADED = {"both": range(6), "features alone": range(3), "values alone": range(3, 6), "z": [3], "w_f": [1]}


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("which", GRADED)
def test_first_and_second_derivatives_are_right_in_both_modes(kind, which):
    arguments = graded(*GRADED[which], **SMALL)
    wanted = [t for t in arguments if t.requires_grad]
    results = slice(2)
    if kind["gate"] == "hard" and which != "both":  # Only these results depend on what needs a gradient.
        results = slice(1) if which in ("features alone", "w_f") else slice(1, 2)
    elif which in ("values alone", "z"):
        results = slice(1, 2)

    def function(*given):
        given = iter(given)
        return gated_linear_pair(*[next(given) if t.requires_grad else t for t in arguments], gain=1.1, **kind)[results]

    assert torch.autograd.gradcheck(function, wanted, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, wanted, check_fwd_over_rev=which == "both")


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_transformations_of_torch_func(kind):
    arguments, tangents = pair_problem(**SMALL), pair_problem(**SMALL, seed=1)

    def of(library):
        def layer(*given):
            h, z, _ = library.gated_linear_pair(*given, **kind)
            return (h * z).sin()

        return (
            torch.func.jvp(layer, tuple(arguments), tuple(tangents))[1],
            *torch.func.grad(lambda *given: layer(*given).sum(), argnums=(0, 1, 2, 3, 4, 5))(*arguments),
            torch.func.hessian(lambda b: layer(*arguments[:2], b, *arguments[3:]).sum())(arguments[2]),
        )

    for ours, expected in zip(of(Ours), of(reference), strict=True):
        assert_close_in_float64(ours, expected)


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_result_that_is_not_used_needs_no_gradient_of_its_own(kind):
    for used in (0, 1):
        ours, expected = (
            torch.autograd.grad(f(*given, **kind)[used].sum(), [given[used * 3]])[0]
            for f, given in ((f, graded(*range(6), **SMALL)) for f in (gated_linear_pair, reference.gated_linear_pair))
        )
        assert_close_in_float64(ours, expected)


# --- frozen networks, memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_frozen_feature_network_has_no_backward_and_keeps_nothing(kind):
    arguments = graded(3, 4, 5, leading=(100,), inputs=(64, 32), width=256)
    saved, (h_next, z_next, _) = saved_tensors(lambda: gated_linear_pair(*arguments, **kind))
    assert not h_next.requires_grad
    assert z_next.requires_grad
    kept = {t.data_ptr() for t in saved}
    assert not kept & {t.data_ptr() for t in arguments[:3]}
    floats = [t for t in saved if t.is_floating_point() and t.data_ptr() not in {a.data_ptr() for a in arguments[3:]}]
    # A soft gate is a number, so the pre-activation that it is made of is compared.
    assert [t.shape for t in floats] == ([] if kind["gate"] == "hard" else [(100, 256)])
    z_next.sum().backward()
    assert all(t.grad is None for t in arguments[:3])
    assert all(t.grad is not None for t in arguments[3:])


def test_a_frozen_value_network_leaves_its_hard_gated_results_alone():
    h_next, z_next, _ = gated_linear_pair(*graded(0, 1, 2))
    assert h_next.requires_grad
    assert not z_next.requires_grad
    assert gated_linear_pair(*graded(0, 1, 2), gate="soft")[1].requires_grad


def test_hard_gates_keep_the_inputs_and_one_bit_per_gate():
    arguments = graded(*range(6), leading=(1000,), inputs=(64, 64), width=512)
    saved, _ = saved_tensors(lambda: gated_linear_pair(*arguments))
    others = [t for t in saved if all(t is not argument for argument in arguments)]
    assert len(saved) == 5
    assert [(t.dtype, t.nbytes) for t in others] == [(torch.int32, 1000 * 512 // 8)]


# --- into the words of a GateBits -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("leading", [(), (9,), (3, 5), (0,)])
def test_gates_written_into_a_buffer_are_those_returned(kind, leading):
    arguments = graded(*range(6), leading=leading, width=300)
    n = torch.Size(leading).numel()
    words = torch.full((n, 40), -7, dtype=torch.int32)
    with torch.no_grad():
        expected = gated_linear_pair(*arguments, **kind)
        found = gated_linear_pair(*arguments, **kind, gates_out=words[:, 8:24])
    for ours, other in zip(found[:2], expected[:2], strict=True):
        assert_same_bits(ours, other)
    assert found[2] == expected[2]
    assert found[2].words.data_ptr() == words[:, 8:24].data_ptr()
    assert (words[:, :8] == -7).all()
    assert (words[:, 24:] == -7).all()


def test_the_gates_of_a_network_are_written_ready_for_the_gram():
    specs = dense(300, 33, 64)
    layers = reference.words_from_bool([torch.zeros(1, *shape, dtype=torch.bool) for shape, _ in specs])[1]
    x = h = z = pair_problem((40,), (12, 12))[0]
    words = torch.empty(40, layers[-1].first_word + 8, dtype=torch.int32)
    parts = []
    sizes = [12, *(layer.width for layer in layers)]
    with torch.no_grad():
        for layer, inputs in zip(layers, sizes[:-1], strict=True):
            _, w_f, b_f, _, w_v, b_v = pair_problem((1,), (inputs, inputs), layer.width, seed=inputs)
            after = layer.first_word + -(-layer.width // 256) * 8
            slot = words[:, layer.first_word : after]
            h, z, bits = gated_linear_pair(h, w_f, b_f, z, w_v, b_v, gates_out=slot)
            parts.append(bits.unpack()[0])
    assert_same_bits(npk_gram(x, GateBits(words, layers)), npk_gram(x, GateBits.pack(parts)))
