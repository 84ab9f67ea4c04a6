"""Bad input raises a ValueError or TypeError that names the argument, before any work, and nothing is written."""

from __future__ import annotations

import copy

import pytest
import torch
from strategies import dense, random_bits, rows_of
from tolerances import assert_same_bits

from gatedops import GateBits, gate_overlap, npk_diag, npk_gram, npk_matvec, pack_gates, unpack_gates

N, M, D = 6, 4, 5
BITS, Y_BITS = random_bits(N, dense(40, 33)), random_bits(M, dense(40, 33), seed=1)
X, Y, V = rows_of(N, D), rows_of(M, D, 1), rows_of(M, 3, 2)
META_BITS = GateBits(BITS.words.to("meta"), BITS.layers)
HUGE = random_bits(N, dense(*[256] * 16))  # 2^128 paths are just too many for float32.
OTHER_BITS = {
    "other widths": random_bits(M, dense(40, 34)),
    "other number of layers": random_bits(M, dense(40)),
    "other order": random_bits(M, dense(33, 40)),
    "other shapes": random_bits(M, [((8, 5), "gate"), ((33,), "gate")]),
    "other device": GateBits(Y_BITS.words.to("meta"), Y_BITS.layers),
}

# Maps what is wrong to the argument that the message names, and the call.
GRAM_CASES = {
    "x has other rows than bits": ("x", lambda **out: npk_gram(X[:5], BITS, **out)),
    "y has other rows than y_bits": ("y", lambda **out: npk_gram(X, BITS, Y[:3], Y_BITS, **out)),
    "y has other columns than x": ("y", lambda **out: npk_gram(X, BITS, Y[:, :4], Y_BITS, **out)),
    "x is on another device": ("x", lambda **out: npk_gram(X.to("meta"), BITS, **out)),
    "y is on another device": ("y", lambda **out: npk_gram(X, BITS, Y.to("meta"), Y_BITS, **out)),
    "bits are on another device": ("x|bits", lambda **out: npk_gram(X, META_BITS, **out)),
    "y has another dtype than x": ("y", lambda **out: npk_gram(X, BITS, Y.double(), Y_BITS, **out)),
    "only x is uint8": ("y", lambda **out: npk_gram(X.byte(), BITS, Y, Y_BITS, **out)),
    "only y is uint8": ("y", lambda **out: npk_gram(X, BITS, Y.byte(), Y_BITS, **out)),
    "x is 1-d": ("x", lambda **out: npk_gram(X[:, 0], BITS, **out)),
    "x is 3-d": ("x", lambda **out: npk_gram(X[..., None], BITS, **out)),
    "y is 1-d": ("y", lambda **out: npk_gram(X, BITS, Y[:, 0], Y_BITS, **out)),
    "x is complex": ("x", lambda **out: npk_gram(X.to(torch.complex64), BITS, **out)),
    "y is complex": ("y", lambda **out: npk_gram(X, BITS, Y.to(torch.complex64), Y_BITS, **out)),
    "x is int64": ("x", lambda **out: npk_gram(X.long(), BITS, **out)),
    "x is bool": ("x", lambda **out: npk_gram(X > 0, BITS, **out)),
    "x is not a tensor": ("x", lambda **out: npk_gram(X.tolist(), BITS, **out)),
    "y without y_bits": ("y_bits", lambda **out: npk_gram(X, BITS, Y, **out)),
    "y_bits without y": ("y", lambda **out: npk_gram(X, BITS, None, Y_BITS, **out)),
    "y without x": ("y|x", lambda **out: npk_gram(None, BITS, Y, Y_BITS, **out)),
    "bits is a tensor": ("bits", lambda **out: npk_gram(X, BITS.words, **out)),
    "y_bits is a tensor": ("y_bits", lambda **out: npk_gram(X, BITS, Y, Y_BITS.words, **out)),
    "an unknown scale": ("scale", lambda **out: npk_gram(X, BITS, scale="depth", **out)),
    "scale is None": ("scale", lambda **out: npk_gram(X, BITS, scale=None, **out)),
    "scale is one number": ("scale", lambda **out: npk_gram(X, BITS, scale=0.5, **out)),
    "scale has one number too few": ("scale", lambda **out: npk_gram(X, BITS, scale=[1.0], **out)),
    "scale has one number too many": ("scale", lambda **out: npk_gram(X, BITS, scale=[1.0, 1.0, 1.0], **out)),
    "scale is empty": ("scale", lambda **out: npk_gram(X, BITS, scale=[], **out)),
    "scale has no numbers": ("scale", lambda **out: npk_gram(X, BITS, scale=["a", "b"], **out)),
    "scale none beyond float32": ("scale", lambda **out: npk_gram(X, HUGE, scale="none", **out)),
    "dtype is an integer": ("dtype", lambda **out: npk_gram(X, BITS, dtype=torch.int32, **out)),
    "dtype is complex": ("dtype", lambda **out: npk_gram(X, BITS, dtype=torch.complex64, **out)),
    "dtype is not for the CPU": ("dtype", lambda **out: npk_gram(X, BITS, dtype=torch.bfloat16, **out)),
    "dtype is a string": ("dtype", lambda **out: npk_gram(X, BITS, dtype="float32", **out)),
} | {
    f"y_bits has {what}": ("y_bits", lambda other=other, **out: npk_gram(X, BITS, Y, other, **out))
    for what, other in OTHER_BITS.items()
}

OTHER_CASES = {
    "overlap of a tensor": ("a", lambda: gate_overlap(BITS.words)),
    "overlap with a tensor": ("b", lambda: gate_overlap(BITS, Y_BITS.words)),
    "diagonal of x with other rows": ("x", lambda: npk_diag(X[:5], BITS)),
    "diagonal of a 1-d x": ("x", lambda: npk_diag(X[:, 0], BITS)),
    "diagonal of a complex x": ("x", lambda: npk_diag(X.to(torch.complex64), BITS)),
    "diagonal of x on another device": ("x", lambda: npk_diag(X.to("meta"), BITS)),
    "diagonal with an unknown scale": ("scale", lambda: npk_diag(X, BITS, scale="depth")),
    "diagonal with scale none beyond float32": ("scale", lambda: npk_diag(X, HUGE, scale="none")),
    "diagonal with an integer dtype": ("dtype", lambda: npk_diag(X, BITS, dtype=torch.int64)),
    "diagonal of a tensor": ("bits", lambda: npk_diag(X, BITS.words)),
    "matvec with v of other rows": ("v", lambda: npk_matvec(X, BITS, V, None)),
    "matvec with v of the rows of x": ("v", lambda: npk_matvec(X, BITS, X, Y, Y_BITS)),
    "matvec with a 3-d v": ("v", lambda: npk_matvec(X, BITS, V[..., None], Y, Y_BITS)),
    "matvec with a 0-d v": ("v", lambda: npk_matvec(X, BITS, torch.tensor(1.0), Y, Y_BITS)),
    "matvec with a complex v": ("v", lambda: npk_matvec(X, BITS, V.to(torch.complex64), Y, Y_BITS)),
    "matvec with an integer v": ("v", lambda: npk_matvec(X, BITS, V.long(), Y, Y_BITS)),
    "matvec with v on another device": ("v", lambda: npk_matvec(X, BITS, V.to("meta"), Y, Y_BITS)),
    "matvec with v that is not a tensor": ("v", lambda: npk_matvec(X, BITS, V.tolist(), Y, Y_BITS)),
    "matvec with x of other rows": ("x", lambda: npk_matvec(X[:5], BITS, V, Y, Y_BITS)),
    "matvec with y of other columns": ("y", lambda: npk_matvec(X, BITS, V, Y[:, :4], Y_BITS)),
    "matvec with y but no y_bits": ("y_bits", lambda: npk_matvec(X, BITS, V, Y)),
    "matvec with a complex x": ("x", lambda: npk_matvec(X.to(torch.complex64), BITS, V, Y, Y_BITS)),
    "matvec with other widths": ("y_bits", lambda: npk_matvec(X, BITS, V, Y, OTHER_BITS["other widths"])),
    "matvec with an unknown scale": ("scale", lambda: npk_matvec(X, BITS, V, Y, Y_BITS, scale="depth")),
    "matvec with scale none beyond float32": ("scale", lambda: npk_matvec(X, HUGE, X, scale="none")),
    "matvec with an integer dtype": ("dtype", lambda: npk_matvec(X, BITS, V, Y, Y_BITS, dtype=torch.int32)),
    "packing a 1-d tensor": ("q", lambda: pack_gates(X[:, 0])),
    "packing a 0-d tensor": ("q", lambda: pack_gates(torch.tensor(1.0))),
    "packing a 6-d tensor": ("q", lambda: pack_gates(torch.zeros(1, 1, 1, 1, 1, 1))),
    "packing a width of 0": ("q", lambda: pack_gates(torch.zeros(3, 0))),
    "packing no channels": ("q", lambda: pack_gates(torch.zeros(3, 0, 2, 2))),
    "packing no positions": ("q", lambda: pack_gates(torch.zeros(3, 0, 5))),
    "packing a width of 0 without rows": ("q", lambda: pack_gates(torch.zeros(0, 0))),
    "packing complex numbers": ("q", lambda: pack_gates(X.to(torch.complex64))),
    "packing integers": ("q", lambda: pack_gates(X.long())),
    "packing a list of lists": ("q", lambda: pack_gates([[1.0, 2.0]])),
    "an empty list of layers": ("gates", lambda: GateBits.pack([])),
    "a tensor for the list of layers": ("gates", lambda: GateBits.pack(X)),
    "a list of lists for the layers": ("gates", lambda: GateBits.pack([[1.0, 2.0]])),
    "None for a layer": ("gates", lambda: GateBits.pack([X, None])),
    "layers of other rows": ("gates", lambda: GateBits.pack([X, Y])),
    "layers on two devices": ("gates", lambda: GateBits.pack([X, X.to("meta")])),
    "a 1-d layer": ("gates", lambda: GateBits.pack([X, X[:, 0]])),
    "a layer of width 0": ("gates|shape", lambda: GateBits.pack([X, X[:, :0]])),
    "too few names": ("names", lambda: GateBits.pack([X, X], names=["a"])),
    "too many kinds": ("kinds", lambda: GateBits.pack([X], kinds=["gate", "gate"])),
    "an unknown kind": ("kind", lambda: GateBits.pack([X], kinds=["pool"])),
    "select masks of a dense layer": ("kind|shape", lambda: GateBits.pack([X], kinds=["select"])),
    "words that are not int32": ("words", lambda: GateBits(BITS.words.long(), BITS.layers)),
    "1-d words": ("words", lambda: GateBits(BITS.words[0], BITS.layers)),
    "words too short for the layers": ("words|layers", lambda: GateBits(BITS.words[:, :8], BITS.layers)),
    "unpacking a tensor": ("bits", lambda: unpack_gates(BITS.words)),
    "joining nothing": ("parts", lambda: GateBits.cat([])),
    "joining tensors": ("parts", lambda: GateBits.cat([BITS.words])),
    "joining other layers": ("parts", lambda: GateBits.cat([BITS, OTHER_BITS["other widths"]])),
    "selecting no layer": ("selection", lambda: BITS.select_layers([])),
} | {f"overlap with {what}": ("b", lambda other=other: gate_overlap(BITS, other)) for what, other in OTHER_BITS.items()}


@pytest.mark.parametrize("what", GRAM_CASES)
def test_npk_gram_names_the_bad_argument_and_writes_nothing(what):
    argument, call = GRAM_CASES[what]
    with pytest.raises((ValueError, TypeError), match=rf"\b({argument})\b"):
        call()
    for columns in (N, M):
        out = torch.full((N, columns), 7.0)
        with pytest.raises((ValueError, TypeError)):
            call(out=out)
        assert (out == 7).all()


@pytest.mark.parametrize("what", OTHER_CASES)
def test_the_other_functions_name_the_bad_argument(what):
    argument, call = OTHER_CASES[what]
    with pytest.raises((ValueError, TypeError), match=rf"\b({argument})\b"):
        call()


def bad_outs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Maps what is wrong to x (N, D) and out."""
    shared = rows_of(N, 2 * N)
    words = BITS.words.view(torch.float32)
    return {
        "wrong number of rows": (X, torch.full((N + 1, N), 7.0)),
        "wrong number of columns": (X, torch.full((N, N + 1), 7.0)),
        "wrong number of dimensions": (X, torch.full((N * N,), 7.0)),
        "another float dtype": (X, torch.full((N, N), 7.0, dtype=torch.float64)),
        "an integer dtype": (X, torch.full((N, N), 7, dtype=torch.int32)),
        "another device": (X, torch.full((N, N), 7.0, device="meta")),
        "x itself": (shared[:, :N], shared[:, :N]),
        "a part of x": (shared[:, 2:8], shared[:, :N]),
        "a part of bits": (X, words[:, :N]),
        "columns apart": (X, torch.full((N, 2 * N), 7.0)[:, ::2]),
        "transposed": (X, torch.full((N, N), 7.0).T),
        "one row repeated": (X, torch.full((1, N), 7.0).expand(N, N)),
        "rows that overlap each other": (X, torch.full((2 * N,), 7.0).as_strided((N, N), (1, 1))),
        "a tensor with a gradient": (X, torch.full((N, N), 7.0, requires_grad=True)),
        "a list": (X, [[7.0] * N] * N),
    }


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("what", bad_outs())
def test_a_bad_out_is_named_and_keeps_its_values(what, normalize):
    x, out = bad_outs()[what]
    before = copy.deepcopy(out)
    with pytest.raises((ValueError, TypeError), match=r"\bout\b"):
        npk_gram(x, BITS, normalize=normalize, out=out)
    if isinstance(out, torch.Tensor) and not out.is_meta:
        assert_same_bits(out.detach(), before.detach())


@pytest.mark.parametrize("which", ["x", "y"])
def test_out_together_with_a_gradient_is_refused(which):
    x, y = X.clone().requires_grad_(which == "x"), Y.clone().requires_grad_(which == "y")
    out = torch.full((N, M), 7.0)
    with pytest.raises(ValueError, match=r"\bout\b"):
        npk_gram(x, BITS, y, Y_BITS, out=out)
    assert (out == 7).all()
    with torch.no_grad():
        npk_gram(x, BITS, y, Y_BITS, out=out)
    assert out.equal(npk_gram(X, BITS, Y, Y_BITS))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda"), "cuda:0"], ids=str)
def test_cuda_without_a_gpu_is_one_sentence(device):
    with pytest.raises(ValueError, match=r"\bdevice\b.*(CUDA|GPU)") as caught:
        BITS.to(device)
    assert "\n" not in str(caught.value).strip()


def test_layers_that_are_not_there_are_named():
    with pytest.raises((ValueError, KeyError), match="nowhere"):
        BITS.select_layers(["nowhere"])
    with pytest.raises((ValueError, IndexError), match="2"):
        BITS.select_layers([2])


RAW = torch.ops.gatedops
RAW_CASES = {
    "a layer past the row": lambda: RAW.npk_gram(
        X, BITS.words, None, None, None, None, [16], [16], [1], [1.0], torch.float32
    ),
    "a layer that ends past the row": lambda: RAW.gate_overlap(BITS.words, None, [8], [8], [9], [288], "both"),
    "a layer before the row": lambda: RAW.gate_overlap(BITS.words, None, [-8], [0], [1], [32], "both"),
    "a layer without words": lambda: RAW.gate_overlap(BITS.words, None, [0], [0], [0], [1], "both"),
    "a layer of 2^63 words": lambda: RAW.gate_overlap(BITS.words, None, [8], [8], [2**63 - 1], [1], "both"),
    "a layer past the row of y": lambda: RAW.gate_overlap(BITS.words, Y_BITS.words[:, :8], [8], [8], [1], [32], "both"),
    "no layers": lambda: RAW.gate_overlap(BITS.words, None, [], [], [], [], "both"),
    "lists of two lengths": lambda: RAW.gate_overlap(BITS.words, None, [0, 8], [0], [1, 1], [32, 32], "both"),
    "too few factors": lambda: RAW.npk_diag(BITS.words, [0, 8], [1, 1], [1.0], torch.float32),
    "int64 words": lambda: RAW.gate_overlap(BITS.words.long(), None, [0], [0], [1], [32], "both"),
    "1-d words": lambda: RAW.gate_overlap(BITS.words[0], None, [0], [0], [1], [32], "both"),
    "words with gaps": lambda: RAW.gate_overlap(BITS.words[:, ::2], None, [0], [0], [1], [32], "both"),
    "x of other rows": lambda: RAW.npk_gram(
        X[:3], BITS.words, None, None, None, None, [0], [0], [1], [1.0], torch.float32
    ),
    "an integer dtype": lambda: RAW.npk_gram(X, BITS.words, None, None, None, None, [0], [0], [1], [1.0], torch.int64),
    "q of two dimensions": lambda: RAW.pack_gates(X),
    "words too short to unpack": lambda: RAW.unpack_gates(BITS.words, 1, 16 * 32 + 1),
    "a negative number of channels": lambda: RAW.unpack_gates(BITS.words, 1, -5),
    "a grad of another shape": lambda: RAW.npk_gram_backward(
        torch.zeros(2, 2), BITS.words, X, None, [0], [0], [1], [1.0]
    ),
    "a v of other rows": lambda: RAW.npk_matvec(X, BITS.words, None, None, V, [0], [0], [1], [1.0]),
    "an out of another shape": lambda: RAW.npk_gram_out(
        X, BITS.words, None, None, None, None, [0], [0], [1], [1.0], out=torch.zeros(2, 2)
    ),
    "factors of other rows": lambda: RAW.npk_gram(
        X, BITS.words, None, None, torch.ones(2, dtype=torch.float64), None, [0], [0], [1], [1.0], torch.float32
    ),
    "words that do not fit out": lambda: RAW.pack_gates_out(X[:, None], out=torch.zeros(N, 4, dtype=torch.int32)),
    "an out with other rows": lambda: RAW.pack_gates_out(X[:, None], out=torch.zeros(N - 1, 8, dtype=torch.int32)),
}


@pytest.mark.parametrize("what", RAW_CASES)
def test_the_raw_ops_refuse_what_would_leave_a_tensor(what):
    with pytest.raises(ValueError):  # noqa: PT011  (The texts are for developers.)
        RAW_CASES[what]()
