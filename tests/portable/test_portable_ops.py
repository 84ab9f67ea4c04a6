"""Every schema has a portable op, which has bounded memory, and is exact in both forms of an integer product."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_bytes import LiveBytes
from schemas import SCHEMAS
from strategies import dense, examples, random_bits, seeds
from tolerances import assert_as_good_as_torch, assert_same_bits
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gatedops import reference
from gatedops.ops.conv_program import Instruction, Op, encode
from gatedops.portable import gates, gram, gram_blocks, layer_gradients, products, register, rows, sigma
from gatedops.portable.workspace import WORKSPACE

NAMES = [schema.split("(")[0] for schema in SCHEMAS]


def test_every_schema_has_a_portable_op():
    assert sorted(register.OPS) == sorted(NAMES)


@pytest.mark.parametrize("name", register.OPS)
def test_a_portable_op_takes_what_its_schema_says(name):
    schema = getattr(torch.ops.gatedops, name).default._schema
    parameters = inspect.signature(register.OPS[name]).parameters.values()
    assert [p.name for p in parameters] == [argument.name for argument in schema.arguments]
    assert [p.kind is p.KEYWORD_ONLY for p in parameters] == [argument.kwarg_only for argument in schema.arguments]


@pytest.mark.parametrize("key", ["CUDA", "MPS", "XPU", "HPU", "PrivateUse1"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_finds_it_on_devices_without_a_kernel(name, key):
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"gatedops::{name}", key)


# --- memory: each op on a problem far larger than the workspace, on tensors without any memory ----------------------


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def words(n: int, layers: int, size: int) -> tuple[Tensor, list[int], list[int], list[float]]:
    """Makes the words of n rows of this many layers, and the first word, the count and the scale of each layer."""
    first = [layer * size for layer in range(layers)]
    return on_meta(n, layers * size, dtype=torch.int32), first, [size] * layers, [0.5] * layers


def gram_case(dtype: torch.dtype, x_dtype: torch.dtype, columns: int, layers: int, size: int) -> tuple:
    n = 9000
    bits, first, count, scale = words(n, layers, size)
    x, factor = on_meta(n, columns, dtype=x_dtype), on_meta(n, dtype=torch.float64)
    return x, bits, None, None, factor, None, first, first, count, scale, dtype


def gram_out_case() -> tuple:
    *case, dtype = gram_case(torch.float32, torch.bfloat16, 9000, 3, 32)
    return *case, {"out": on_meta(9000, 9000, dtype=dtype)}


def sides(n: int, m: int) -> tuple[Tensor, Tensor, list[int], list[int], list[float]]:
    left, first, count, scale = words(n, 2, 40)
    return left, words(m, 2, 40)[0], first, count, scale


def overlap_case() -> tuple:
    left, right, first, count, _ = sides(7000, 5000)
    return left, right, first, first, count, [1200, 1280], "agree"


def neighbors_case() -> tuple:
    left, right, first, count, scale = sides(3000, 30000)
    return left, right, first, first, count, scale, 20000, torch.float64


def matvec_case() -> tuple:
    left, right, first, count, scale = sides(9000, 7000)
    x, y = on_meta(9000, 3000, dtype=torch.float16), on_meta(7000, 3000, dtype=torch.float16)
    return x, left, y, right, on_meta(7000, 2000, dtype=torch.float64), first, first, count, scale


def gram_backward_case() -> tuple:
    left, first, count, scale = words(9000, 3, 40)
    return on_meta(9000, 9000), left, on_meta(9000, 20000, dtype=torch.bfloat16), None, first, first, count, scale


def conv_case() -> tuple:
    program = [
        Instruction(Op.INPUT, 0, first=0, channels=3, height=16, width=16, out_height=16, out_width=16),
        Instruction(Op.BOX, 1, 0, first=0, channels=64, height=16, width=16, out_height=16, out_width=16, kernel_h=3,
                    kernel_w=3, pad_top=1, pad_left=1),
        Instruction(Op.TRACE, 2, 1, height=16, width=16),
    ]  # fmt: skip
    return on_meta(300, 768), on_meta(300, 512, dtype=torch.int32), None, None, encode(program), [1.0], torch.float32


ROWS, WIDTH = 300_000, 2048  # The output of such a layer takes 2.3 GiB.
LAYER = (on_meta(ROWS, 100), on_meta(WIDTH, 100), on_meta(WIDTH))
OUTPUT, BITS = on_meta(ROWS, WIDTH), on_meta(ROWS, WIDTH // 32, dtype=torch.int32)
IMAGES, MASKS = on_meta(40, 112 * 112, 100), on_meta(40, 112 * 112 * 4, dtype=torch.int32)
BOTH = (*LAYER, *LAYER)

CASES: dict[str, tuple] = {
    "pack_gates": (IMAGES,),
    "pack_gates_out": (IMAGES, {"out": MASKS}),
    "unpack_gates": (MASKS, 112 * 112, 100),
    "gate_counts": (on_meta(100_000, 9000, dtype=torch.int32),),
    "gate_overlap": overlap_case(),
    "gate_neighbors": neighbors_case(),
    "npk_gram": gram_case(torch.float64, torch.uint8, 20_000, 2, 2000),
    "npk_gram_out": gram_out_case(),
    "npk_gram_backward": gram_backward_case(),
    "npk_matvec": matvec_case(),
    "npk_product": (*matvec_case(), False),
    "npk_diag": (*words(100_000, 3, 4000), torch.float64),
    "soft_npk_gram": (on_meta(9000, 1000), None, [100] * 10, [1.0] * 10),
    "soft_npk_gram_backward": (on_meta(2000, 2000), on_meta(2000, 1000), None, [10] * 100, [1.0] * 100),
    "gated_linear": (*LAYER, BITS, 0),
    "gated_linear_relu": LAYER,
    "gated_linear_soft": (*LAYER, OUTPUT),
    "gated_linear_backward": (OUTPUT, *LAYER[:2], BITS, 0, True),
    "gated_linear_soft_backward": (OUTPUT, *LAYER[:2], OUTPUT, OUTPUT, True),
    "gated_linear_pair": (*BOTH, False),
    "gated_linear_pair_backward": (OUTPUT, OUTPUT, *LAYER[:2], True, *LAYER[:2], True, BITS, False),
    "gated_linear_pair_soft": (*BOTH, 4.0, 1.0, False),
    "gated_linear_pair_soft_backward": (
        *(OUTPUT, OUTPUT, OUTPUT, OUTPUT, *LAYER[:2], True, *LAYER[:2], True, 4.0, 1.0, False),
    ),
    "gated_linear_pair_out": (
        *(*BOTH, True, 4.0, 1.0, False),
        {"h_next": OUTPUT, "z_next": OUTPUT, "gates_out": BITS},
    ),
    "gate_relu": (IMAGES,),
    "gate_select": (IMAGES, MASKS, 0),
    "conv_gram": conv_case(),
}

COUNTING = (
    "gate_overlap",
    "gate_neighbors",
    "npk_gram",
    "npk_gram_out",
    "npk_gram_backward",
    "npk_matvec",
    "npk_product",
    "conv_gram",
)


@pytest.mark.parametrize(("name", "int8"), [*((name, True) for name in NAMES), *((name, False) for name in COUNTING)])
def test_the_workspace_is_bounded(name, int8, monkeypatch):
    for module in (products, gram_blocks, sigma):
        monkeypatch.setattr(module, "has_int8", lambda device: int8)
    *args, last = CASES[name]
    args, kwargs = (args, last) if isinstance(last, dict) else ([*args, last], {})
    given = [value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)]
    with LiveBytes(*given) as memory:
        result = register.OPS[name](*args, **kwargs)
    sizes = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tree_leaves(result) if t is not None}
    assert memory.peak - sum(sizes.values()) <= WORKSPACE


@pytest.mark.parametrize("int8", [True, False])
def test_the_workspace_is_bounded_with_slopes(int8, monkeypatch):
    for module in (products, gram_blocks, sigma):
        monkeypatch.setattr(module, "has_int8", lambda device: int8)
    layers, slopes = sides(3000, 5000), ([0.5, -1.0], [1200, 1280])
    left, right, first, count, scale = layers
    v = on_meta(5000, 9, dtype=torch.float64)
    with LiveBytes(left, right, v) as memory:
        result = register.OPS["npk_matvec"](None, left, None, right, v, first, first, count, scale, *slopes)
    assert memory.peak - result.nbytes <= WORKSPACE


def test_what_is_no_matrix_is_not_copied_as_a_whole():
    grad, x = on_meta(8, 1, 1024).expand(8, 20_000, 1024), on_meta(20_000, 8, 512).transpose(0, 1)
    weight = on_meta(1024, 512)
    words = on_meta(8 * 20_000, 32, dtype=torch.int32)
    for name, args in (("gated_linear", (x, weight, None, words, 0)),
                       ("gated_linear_backward", (grad, x, weight, words, 0, True))):  # fmt: skip
        with LiveBytes(grad, x, weight, words) as memory:
            result = register.OPS[name](*args)
        sizes = sum(t.nbytes for t in tree_leaves(result))
        assert memory.peak - sizes <= WORKSPACE


@pytest.mark.parametrize("large", [1 << 26, 5000])
def test_rows_of_any_strides_are_those_of_a_copy(large, monkeypatch):
    for module in (rows, layer_gradients):
        monkeypatch.setattr(module, "LARGE", large)
    x, grad = torch.randn(20, 6, 40).transpose(0, 1), torch.randn(6, 1, 70).expand(6, 20, 70)
    weight, words = torch.randn(70, 40), random_bits(120, dense(70)).words
    for name, args in (("gated_linear", (x, weight, None, words, 0)),
                       ("gated_linear_backward", (grad, x, weight, words, 0, True))):  # fmt: skip
        found = register.OPS[name](*args)
        copied = [t.contiguous() if isinstance(t, Tensor) else t for t in args]
        for ours, expected in zip(tree_leaves(found), tree_leaves(register.OPS[name](*copied)), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 1, 700), (3, 5, 40), (2, 3, 20), (1, 2, 300)], ids=str)
def test_gates_in_pieces_are_those_of_the_whole(shape, monkeypatch):
    q = torch.randn(shape)
    whole = register.OPS["pack_gates"](q)
    for size in (gates.piece_of(q.device), 64, 128):
        monkeypatch.setattr(gates, "piece_of", lambda device, size=size: size)
        assert_same_bits(register.OPS["pack_gates"](q), whole)
        assert_same_bits(register.OPS["unpack_gates"](whole, *shape[1:]), q > 0)
        assert_same_bits(register.OPS["gate_select"](q, whole, 0), torch.where(q > 0, q, 0.0))


# --- both forms of an exact product ---------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["int8", "float32"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes products of small integers use one form."""
    for module in (gram_blocks, sigma):
        monkeypatch.setattr(module, "has_int8", lambda device: request.param)
    monkeypatch.setattr(gram_blocks, "edge_of", lambda device: 40)  # This makes several tiles.
    monkeypatch.setattr(gram_blocks, "_GATES", 64)  # This counts a layer in parts.


MEASURES = {"both": reference.gate_overlap, "agree": reference.gate_agreement, "differ": reference.gate_hamming}


def as_args(bits) -> tuple[list[int], list[int], list[float]]:
    layers = bits.layers
    return [layer.first_word for layer in layers], [layer.words for layer in layers], [1 / w for w in bits.widths]


@given(st.lists(st.sampled_from([1, 33, 64, 130]), min_size=1, max_size=3), st.integers(0, 90), seeds)
@examples(15)
def test_counts_and_lambda_are_exact(form, widths, n, seed):
    left, right = random_bits(n, dense(*widths), seed), random_bits(50, dense(*widths), seed + 1)
    first, count, scale = as_args(left)
    for other in (None, right):
        y_words = None if other is None else other.words
        for measure, counts in MEASURES.items():
            found = gram.gate_overlap(left.words, y_words, first, first, count, list(widths), measure)
            assert_same_bits(found, counts(left, other))
        found = gram.npk_gram(None, left.words, None, y_words, None, None, first, first, count, scale, torch.float32)
        assert_same_bits(found, reference.npk_gram(None, left, y_bits=other))


@pytest.mark.parametrize("columns", [1, 9, 300, 9000])
def test_products_of_bytes_are_exact(form, columns):
    x = torch.randint(0, 256, (70, columns), dtype=torch.uint8)
    x[:5], x[5:9] = 255, 0
    bits = random_bits(70, dense(32))
    problem = gram_blocks.Problem.of(bits.words, None, [0], [0], [1])
    found = sigma.Sigma.of(x, None, problem, torch.float64).tile(slice(0, 40), slice(3, 70))
    assert_same_bits(found, (x[:40].long() @ x[3:].long().T).double())


# --- gradients of layers larger than the workspace ------------------------------------------------------------------


def exactly(values: Tensor) -> Callable[[slice, slice], Tensor]:
    return lambda rows, columns: values[rows, columns]


@pytest.mark.parametrize("rows_at_once", [1 << 18, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_parts_are_as_good_as_in_one(dtype, rows_at_once, monkeypatch):
    dv, x, weight = torch.randn(330, 200).to(dtype), torch.randn(330, 70).to(dtype), torch.randn(200, 70).to(dtype)
    monkeypatch.setattr(layer_gradients, "LARGE", 330 * 64 * dv.itemsize)
    monkeypatch.setattr(layer_gradients, "_ROWS", rows_at_once)
    whole = [dv @ weight, dv.mT @ x, dv.sum(0)]
    truth = [dv.double() @ weight.double(), dv.double().mT @ x.double(), dv.double().sum(0)]
    parts = layer_gradients.layer_gradients(exactly(dv), dv, x, weight, True)
    for ours, torchs, exact in zip(parts, whole, truth, strict=True):
        assert_as_good_as_torch(ours, torchs, exact)


def test_gradients_that_nothing_asks_for_are_empty(monkeypatch):
    dv, weight = torch.randn(330, 200), torch.randn(200, 70)
    for size in (layer_gradients.LARGE, 1000):
        monkeypatch.setattr(layer_gradients, "LARGE", size)
        dx, dw, db = layer_gradients.layer_gradients(exactly(dv), dv, None, weight, False)
        assert (dx.shape, dw.numel(), db.numel()) == ((330, 70), 0, 0)


# --- devices without float64 and mixed ones -------------------------------------------------------------------------


def test_factors_in_float32_do_not_overflow_where_the_kernel_is_tiny(monkeypatch):
    monkeypatch.setattr(gram, "most_precise", lambda device: torch.float32)
    bits = random_bits(60, dense(64), 0)
    first, count, _ = as_args(bits)
    factor = torch.full((60,), 1e20)
    tiny = gram.npk_gram(None, bits.words, None, None, None, None, first, first, count, [1e-40], torch.float32)
    found = gram.npk_gram(None, bits.words, None, None, factor, None, first, first, count, [1e-40], torch.float32)
    torch.testing.assert_close(found.double(), tiny.double() * 1e40, rtol=1e-6, atol=0)
    assert_same_bits(found, found.mT)


@pytest.mark.parametrize("name", ["pack_gates_out", "npk_matvec"])
def test_tensors_on_two_devices_are_refused(name):
    q, bits = torch.randn(4, 1, 40), random_bits(4, dense(40))
    args = {
        "pack_gates_out": lambda: register.OPS[name](q, out=on_meta(4, 8, dtype=torch.int32)),
        "npk_matvec": lambda: register.OPS[name](
            on_meta(4, 3), bits.words, None, None, torch.randn(4, 2), [0], [0], [2], [1.0]
        ),
    }
    with pytest.raises(ValueError, match="got tensors on cpu and meta, needs all of them on one device"):
        args[name]()
