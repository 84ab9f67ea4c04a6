"""Bad input of the gated layers raises a ValueError or TypeError that names the argument, before any work."""

from __future__ import annotations

import pytest
import torch
from strategies import dense, random_bits, rows_of
from tolerances import assert_same_bits

from gatedops import GateBits, GatedConv2d, GatedLinear, gated_linear, gated_linear_pair
from gatedops.ops.gated_linear_gate import apply_gate, relu_with_gates

N, IN, OUT = 6, 5, 40
X, W, B = rows_of(N, IN), rows_of(OUT, IN, 1), torch.randn(OUT)
Z, V, C = rows_of(N, 3, 2), rows_of(OUT, 3, 3), torch.randn(OUT)
MASK = rows_of(N, OUT, 4) > 0
SOFT = torch.rand(N, OUT)
BITS = random_bits(N, dense(OUT))
IMAGES, FILTERS = torch.randn(2, 3, 4, 4), (3, OUT, 3)
META_BITS = GateBits(BITS.words.to("meta"), BITS.layers)
POOLED = random_bits(2, [((4, 3, 2, 2), "select")])

# Maps what is wrong to the argument that the message names, and the call.
LINEAR = {
    "x has other columns than weight": ("weight", lambda: gated_linear(X[:, :4], W, B)),
    "weight is 1-d": ("weight", lambda: gated_linear(X, W[0], B)),
    "weight is 3-d": ("weight", lambda: gated_linear(X, W[None], B)),
    "weight has no rows": ("weight", lambda: gated_linear(X, W[:0], B[:0])),
    "bias has another length": ("bias", lambda: gated_linear(X, W, B[:-1])),
    "bias is 2-d": ("bias", lambda: gated_linear(X, W, B[None])),
    "bias is one number": ("bias", lambda: gated_linear(X, W, B[0])),
    "x is a number": ("x", lambda: gated_linear(X[0, 0], W, B)),
    "x is int64": ("x", lambda: gated_linear(X.long(), W, B)),
    "x is uint8": ("x", lambda: gated_linear(X.abs().byte(), W, B)),
    "x is bool": ("x", lambda: gated_linear(X > 0, W, B)),
    "x is complex": ("x", lambda: gated_linear(X.to(torch.complex64), W, B)),
    "x is a list": ("x", lambda: gated_linear(X.tolist(), W, B)),
    "weight is None": ("weight", lambda: gated_linear(X, None, B)),
    "bias is a number": ("bias", lambda: gated_linear(X, W, 0.0)),
    "weight has another dtype": ("weight", lambda: gated_linear(X, W.double(), B)),
    "bias has another dtype": ("bias", lambda: gated_linear(X, W, B.double())),
    "weight is on another device": ("weight", lambda: gated_linear(X, W.to("meta"), B)),
    "bias is on another device": ("bias", lambda: gated_linear(X, W, B.to("meta"))),
    "gate bits of other rows": ("gate", lambda: gated_linear(X, W, B, BITS[:-1])),
    "gate bits of another width": ("gate", lambda: gated_linear(X, W, B, random_bits(N, dense(OUT + 1)))),
    "gate bits of two layers": ("gate", lambda: gated_linear(X, W, B, random_bits(N, dense(OUT, OUT)))),
    "gate bits of a pool": ("gate", lambda: gated_linear(X[:2], W, B, POOLED)),
    "gate bits of other tokens": ("gate", lambda: gated_linear(X, W, B, random_bits(N, [((2, OUT), "gate")]))),
    "gate bits on another device": ("gate", lambda: gated_linear(X, W, B, META_BITS)),
    "a bool gate of other rows": ("gate", lambda: gated_linear(X, W, B, MASK[:-1])),
    "a bool gate of another width": ("gate", lambda: gated_linear(X, W, B, MASK[:, 1:])),
    "a bool gate for all rows": ("gate", lambda: gated_linear(X, W, B, MASK[0])),
    "a bool gate on another device": ("gate", lambda: gated_linear(X, W, B, MASK.to("meta"))),
    "a soft gate of other rows": ("gate", lambda: gated_linear(X, W, B, SOFT[:-1])),
    "a soft gate of another width": ("gate", lambda: gated_linear(X, W, B, SOFT[:, 1:])),
    "a soft gate for all rows": ("gate", lambda: gated_linear(X, W, B, SOFT[0])),
    "a soft gate of another dtype": ("gate", lambda: gated_linear(X, W, B, SOFT.double())),
    "a soft gate on another device": ("gate", lambda: gated_linear(X, W, B, SOFT.to("meta"))),
    "an integer gate": ("gate", lambda: gated_linear(X, W, B, MASK.long())),
    "a list as gate": ("gate", lambda: gated_linear(X, W, B, MASK.tolist())),
    "a soft gate has no bits": ("return_gates", lambda: gated_linear(X, W, B, SOFT, return_gates=True)),
}


def pair(h=X, w_f=W, b_f=B, z=Z, w_v=V, b_v=C, **options):
    return gated_linear_pair(h, w_f, b_f, z, w_v, b_v, **options)


def into(gates_out, **options):
    with torch.no_grad():
        return pair(gates_out=gates_out, **options)


WORDS = torch.zeros(N, 8, dtype=torch.int32)

PAIR = {
    "h has other columns than w_f": ("w_f", lambda: pair(h=X[:, :4])),
    "z has other columns than w_v": ("w_v", lambda: pair(z=Z[:, :2])),
    "z has other rows than h": ("z", lambda: pair(z=Z[:-1])),
    "z has other dimensions than h": ("z", lambda: pair(z=Z[None])),
    "z has another dtype": ("z", lambda: pair(z=Z.double(), w_v=V.double(), b_v=C.double())),
    "z is on another device": ("z", lambda: pair(z=Z.to("meta"), w_v=V.to("meta"), b_v=C.to("meta"))),
    "w_v has other out_features": ("w_v", lambda: pair(w_v=V[1:], b_v=C[1:])),
    "w_v has another dtype": ("w_v", lambda: pair(w_v=V.double())),
    "b_f has another length": ("b_f", lambda: pair(b_f=B[1:])),
    "b_v has another length": ("b_v", lambda: pair(b_v=C[1:])),
    "b_v is on another device": ("b_v", lambda: pair(b_v=C.to("meta"))),
    "h is int64": ("h", lambda: pair(h=X.long())),
    "z is bool": ("z", lambda: pair(z=Z > 0)),
    "h is not a tensor": ("h", lambda: pair(h=None)),
    "an unknown gate": ("gate", lambda: pair(gate="sigmoid")),
    "a tensor as gate": ("gate", lambda: pair(gate=None)),
    "an unknown feature": ("feature", lambda: pair(feature="tanh")),
    "beta is 0": ("beta", lambda: pair(gate="soft", beta=0.0)),
    "beta is negative": ("beta", lambda: pair(gate="soft", beta=-4.0)),
    "beta is NaN": ("beta", lambda: pair(gate="soft", beta=float("nan"))),
    "beta is infinite": ("beta", lambda: pair(gate="soft", beta=float("inf"))),
    "gain is 0": ("gain", lambda: pair(gate="soft", gain=0.0)),
    "gain is negative": ("gain", lambda: pair(gate="soft", gain=-1.0)),
    "gates_out of other rows": ("gates_out", lambda: into(WORDS[:-1])),
    "gates_out of other words": ("gates_out", lambda: into(torch.zeros(N, 16, dtype=torch.int32))),
    "gates_out of int64": ("gates_out", lambda: into(WORDS.long())),
    "gates_out with strides": ("gates_out", lambda: into(torch.zeros(8, N, dtype=torch.int32).T)),
    "gates_out on another device": ("gates_out", lambda: into(WORDS.to("meta"))),
    "gates_out is GateBits": ("gates_out", lambda: into(BITS)),
    "gates_out with a gradient": ("gates_out", lambda: pair(w_v=V.clone().requires_grad_(), gates_out=WORDS)),
}

Q = torch.randn(2, OUT, 4, 4)

LAYERS = {
    "x has other columns than the layer": ("weight", lambda: GatedLinear(IN, OUT)(X[:, :4])),
    "the gate has another shape": ("gate", lambda: GatedLinear(IN, OUT)(X, MASK[1:])),
    "an image without channels": ("x", lambda: GatedConv2d(*FILTERS)(IMAGES[0, 0])),
    "a gate of another image size": ("gate", lambda: GatedConv2d(*FILTERS)(IMAGES, torch.ones(2, OUT, 4, 4) > 0)),
    "a soft gate of images has no bits": (
        "return_gates",
        lambda: GatedConv2d(*FILTERS)(IMAGES, torch.ones(2, OUT, 2, 2), return_gates=True),
    ),
    "activations of one dimension": ("q", lambda: relu_with_gates(Q[0, 0, 0])),
    "activations of six dimensions": ("q", lambda: relu_with_gates(Q[None, None])),
    "activations of integers": ("q", lambda: relu_with_gates(Q.long())),
    "activations without gates": ("q", lambda: relu_with_gates(Q[:, :0])),
    "gate bits of another shape": ("gate", lambda: apply_gate(Q, BITS)),
    "gate bits of another network": ("gate", lambda: apply_gate(X, random_bits(N, dense(IN, IN)))),
    "a gate on another device": ("gate", lambda: apply_gate(Q, torch.ones(Q.shape, device="meta") > 0)),
    "a soft gate of another dtype than q": ("gate", lambda: apply_gate(Q, torch.ones(Q.shape).double())),
    "an integer gate of activations": ("gate", lambda: apply_gate(Q, torch.ones(Q.shape).long())),
}


@pytest.mark.parametrize("what", LINEAR)
def test_a_bad_argument_of_a_layer_is_named(what):
    argument, call = LINEAR[what]
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: "):
        call()


@pytest.mark.parametrize("what", PAIR)
def test_a_bad_argument_of_a_pair_is_named(what):
    argument, call = PAIR[what]
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: "):
        call()


@pytest.mark.parametrize("what", LAYERS)
def test_a_bad_argument_of_a_module_is_named(what):
    argument, call = LAYERS[what]
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: "):
        call()


def test_nothing_is_written_before_an_error():
    words = torch.full((N, 16), -7, dtype=torch.int32)
    for options in ({"gates_out": words[:, :8], "z": Z[:-1]}, {"gates_out": words}):
        with pytest.raises((ValueError, TypeError)), torch.no_grad():
            pair(**options)
    assert (words == -7).all()


def test_a_device_without_kernels_is_refused_in_one_sentence():
    fake = torch.randn(2, 3, device="meta")
    with pytest.raises(ValueError, match="weight: is on cpu, x is on meta"):
        gated_linear(fake, W[:, :3])


OPS = torch.ops.gatedops
RAW = {
    "gated_linear": lambda: OPS.gated_linear(X, W, B, BITS.words[:-1], 0),
    "gated_linear past the row": lambda: OPS.gated_linear(X, W, B, BITS.words, 7),
    "gated_linear of a layer before the row": lambda: OPS.gated_linear(X, W, B, BITS.words, -1),
    "gated_linear of other dtypes": lambda: OPS.gated_linear(X, W.double(), B, BITS.words, 0),
    "gated_linear_relu": lambda: OPS.gated_linear_relu(X, W[:, :3], B),
    "gated_linear_relu of integers": lambda: OPS.gated_linear_relu(X.long(), W.long(), None),
    "gated_linear_backward": lambda: OPS.gated_linear_backward(SOFT, X[1:], W, BITS.words, 0, True),
    "gated_linear_backward of other weights": lambda: OPS.gated_linear_backward(SOFT, X, W[1:], None, 0, True),
    "gated_linear_soft": lambda: OPS.gated_linear_soft(X, W, B, SOFT[1:]),
    "gated_linear_soft_backward": lambda: OPS.gated_linear_soft_backward(SOFT, X, W, SOFT[1:], None, True),
    "gated_linear_pair": lambda: OPS.gated_linear_pair(X, W, B, Z[1:], V, C, False),
    "gated_linear_pair_backward": lambda: OPS.gated_linear_pair_backward(
        SOFT, SOFT, X, W, True, Z[1:], V, True, BITS.words, False
    ),
    "gated_linear_pair_backward past the row": lambda: OPS.gated_linear_pair_backward(
        SOFT, SOFT, X, W, True, Z, V, True, BITS.words[:, :1], True
    ),
    "gated_linear_pair_soft": lambda: OPS.gated_linear_pair_soft(X, W, B, Z, V[1:], C[1:], 4.0, 1.0, False),
    "gated_linear_pair_soft_backward": lambda: OPS.gated_linear_pair_soft_backward(
        SOFT, SOFT[1:], SOFT, SOFT, X, W, True, Z, V, True, 4.0, 1.0, False
    ),
    "gated_linear_pair_out": lambda: OPS.gated_linear_pair_out(
        X, W, B, Z, V, C, False, 4.0, 1.0, False, h_next=SOFT.clone(), z_next=SOFT.clone(), gates_out=WORDS[1:]
    ),
    "gate_relu": lambda: OPS.gate_relu(Q),
    "gate_select": lambda: OPS.gate_select(Q.flatten(2).mT, BITS.words[:2], 0),
}


@pytest.mark.parametrize("what", RAW)
def test_raw_ops_guard_themselves(what):
    with pytest.raises(ValueError, match=r"needs|lies outside|has"):
        RAW[what]()


def test_arguments_are_left_as_they_were():
    before = [t.clone() for t in (X, W, B, Z, V, C, MASK, SOFT, BITS.words)]
    gated_linear(X, W, B)
    gated_linear(X, W, B, BITS)
    gated_linear(X, W, B, SOFT)
    pair()
    pair(gate="soft")
    for found, expected in zip((X, W, B, Z, V, C, MASK, SOFT, BITS.words), before, strict=True):
        assert_same_bits(found, expected)
