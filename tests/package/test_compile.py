"""Under torch.compile, torch.export and autocast the ops give the same bits as without."""

from __future__ import annotations

import pytest
import torch
from strategies import dense, random_bits, rows_of
from tolerances import assert_as_good_as_torch, assert_same_bits
from torch.library import opcheck

from gatedops import (
    GateBits,
    gate_overlap,
    npk_diag,
    npk_gram,
    npk_matvec,
    pack_gates,
    reference,
    unpack_gates,
)

BITS, Y_BITS = random_bits(6, dense(40, 33)), random_bits(4, dense(40, 33), seed=1)
X, Y, V = rows_of(6, 5), rows_of(4, 5, 1), rows_of(4, 3, 2)
OPS = torch.ops.gatedops
LAYERS = ([0, 8], [0, 8], [2, 2])
SCALE = [1 / 40, 1 / 33]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()


def grad(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().requires_grad_()


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, backend="aot_eager", **options)


# --- opcheck ------------------------------------------------------------------------------------------------

RECTANGLE = (X, BITS.words, Y, Y_BITS.words)
FACTOR, Y_FACTOR = torch.rand(6, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
OP_CALLS = {
    "pack_gates": (OPS.pack_gates, (torch.randn(5, 3, 70),), {}),
    "pack_gates of a strided bool": (OPS.pack_gates, ((torch.randn(70, 5, 3) > 0).permute(1, 2, 0),), {}),
    "pack_gates_out": (
        OPS.pack_gates_out,
        (torch.randn(5, 3, 70),),
        {"out": torch.zeros(5, 16, dtype=torch.int32)},
    ),
    "unpack_gates": (OPS.unpack_gates, (BITS.words[:, :2], 1, 40), {}),
    "gate_overlap": (OPS.gate_overlap, (BITS.words, Y_BITS.words, *LAYERS, [40, 33], "agree"), {}),
    "gate_overlap of itself": (OPS.gate_overlap, (BITS.words, None, *LAYERS, [40, 33], "both"), {}),
    "npk_gram": (OPS.npk_gram, (*RECTANGLE, None, None, *LAYERS, SCALE, torch.float32), {}),
    "npk_gram of itself": (OPS.npk_gram, (X, BITS.words, None, None, None, None, *LAYERS, SCALE, torch.float64), {}),
    "npk_gram of gates": (
        OPS.npk_gram,
        (None, BITS.words, None, Y_BITS.words, None, None, *LAYERS, SCALE, torch.float32),
        {},
    ),
    "npk_gram with gradients": (
        OPS.npk_gram,
        (grad(X), BITS.words, grad(Y), Y_BITS.words, grad(FACTOR), grad(Y_FACTOR), *LAYERS, SCALE, torch.float32),
        {},
    ),
    "npk_gram of itself with a gradient": (
        OPS.npk_gram,
        (grad(X), BITS.words, None, None, grad(FACTOR), None, *LAYERS, SCALE, torch.float32),
        {},
    ),
    "npk_gram_out": (OPS.npk_gram_out, (*RECTANGLE, FACTOR, Y_FACTOR, *LAYERS, SCALE), {"out": torch.zeros(6, 4)}),
    "npk_gram_backward": (
        OPS.npk_gram_backward,
        (torch.randn(6, 4), BITS.words, Y, Y_BITS.words, *LAYERS, SCALE),
        {},
    ),
    "npk_gram_backward with gradients": (
        OPS.npk_gram_backward,
        (grad(torch.randn(6, 6)), BITS.words, grad(X), None, *LAYERS, SCALE),
        {},
    ),
    "npk_diag": (OPS.npk_diag, (BITS.words, LAYERS[0], LAYERS[2], SCALE, torch.float32), {}),
    "npk_matvec": (OPS.npk_matvec, (*RECTANGLE, V, *LAYERS, SCALE), {}),
    "npk_product": (OPS.npk_product, (*RECTANGLE, V, *LAYERS, SCALE, True), {}),
    "npk_matvec with gradients": (
        OPS.npk_matvec,
        (grad(X), BITS.words, grad(Y), Y_BITS.words, grad(V), *LAYERS, SCALE),
        {},
    ),
    "npk_matvec of itself with a gradient": (
        OPS.npk_matvec,
        (grad(X), BITS.words, None, None, grad(rows_of(6, 3)), *LAYERS, SCALE),
        {},
    ),
}


# torch warns of itself: from 2.14 on opcheck reads .grad of copies that it made.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("what", OP_CALLS)
def test_ops_pass_opcheck(what):
    op, args, kwargs = OP_CALLS[what]
    opcheck(op, args, kwargs)


# --- torch.compile ------------------------------------------------------------------------------------------


def kernel_of(bits: GateBits, x: torch.Tensor) -> torch.Tensor:
    return npk_gram(x, bits, normalize=True) + npk_gram(None, bits).sqrt()


def test_gatebits_are_an_input_of_a_compiled_function():
    assert_same_bits(compiled(kernel_of)(BITS, X), kernel_of(BITS, X))


def test_gatebits_are_a_closure_of_a_compiled_function():
    function = compiled(lambda x, y: npk_gram(x, BITS, y, Y_BITS))
    assert_same_bits(function(X, Y), npk_gram(X, BITS, Y, Y_BITS))


def test_gatebits_are_made_and_returned_by_a_compiled_function():
    def gates_of(q, r):
        bits = GateBits.pack([q, r], names=["q", "r"])
        return bits, bits.select_layers(["r"])[1:3], npk_gram(q, bits), unpack_gates(pack_gates(q))[0]

    q, r = torch.randn(7, 33), torch.randn(7, 3, 5)
    (bits, part, gram, gates), expected = compiled(gates_of)(q, r), gates_of(q, r)
    assert isinstance(bits, GateBits)
    assert bits == expected[0]
    assert bits.layers == expected[0].layers
    assert part == expected[1]
    assert_same_bits(gram, expected[2])
    assert_same_bits(gates, q > 0)


def test_every_op_is_compiled_without_a_break():
    def everything(bits, x, v, y, y_bits):
        return (
            gate_overlap(bits, y_bits),
            npk_gram(x, bits, y, y_bits, scale="none"),
            npk_gram(x, bits, y, y_bits, scale=[0.5, 2.0], dtype=torch.float64),
            npk_diag(x, bits),
            npk_matvec(x, bits, v, y, y_bits),
            npk_matvec(x, bits, x[:, 0]),
            unpack_gates(bits[1:]),
            GateBits.cat([bits, y_bits]).words,
        )

    arguments = (BITS, X, V, Y, Y_BITS)
    found = torch.utils._pytree.tree_leaves(compiled(everything)(*arguments))
    expected = torch.utils._pytree.tree_leaves(everything(*arguments))
    for ours, eager in zip(found, expected, strict=True):
        assert_same_bits(ours, eager)


def test_out_works_in_a_compiled_function():
    def into(bits, x, out):
        npk_gram(x, bits, out=out)
        return out + 1

    out = torch.zeros(6, 6)
    assert_same_bits(compiled(into)(BITS, X, out), npk_gram(X, BITS) + 1)
    assert_same_bits(out, npk_gram(X, BITS))


def test_one_compilation_serves_every_number_of_rows():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(q, x):
        bits = GateBits.pack([q, -q])
        return npk_gram(x, bits), gate_overlap(bits, bits[:2]), npk_diag(None, bits)

    dynamic = torch.compile(function, fullgraph=True, dynamic=True, backend=count)
    for n in (5, 9, 64, 257):
        q, x = torch.randn(n, 33), torch.randn(n, 4)
        for found, expected in zip(dynamic(q, x), function(q, x), strict=True):
            assert_same_bits(found, expected)
    assert len(graphs) == 1


def test_dynamic_rows_of_a_gatebits_input_do_not_recompile():
    function = compiled(kernel_of, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (6, 9, 130):
            bits, x = random_bits(n, dense(40, 33)), rows_of(n, 5)
            assert_same_bits(function(bits, x), kernel_of(bits, x))


def test_a_compiled_function_takes_gatebits_of_other_nets_and_other_numbers_of_rows():
    function = compiled(kernel_of)
    for widths in ((40, 33), (50, 33), (60, 70), (64, 257)):
        for n in (6, 7, 130):
            bits, x = random_bits(n, dense(*widths)), rows_of(n, 5)
            assert_same_bits(function(bits, x), kernel_of(bits, x))


@pytest.mark.parametrize("square", [True, False])
def test_gradients_of_compiled_functions_are_as_good_as_torch(square):
    def loss(library, bits, y_bits, x, y):
        if square:
            return library.npk_gram(x, bits, dtype=x.dtype).sin().sum()
        return library.npk_gram(x, bits, y, y_bits, dtype=x.dtype).sin().sum()

    def gradients(library, dtype, run=lambda f: f):
        x, y = grad(X.to(dtype)), grad(Y.to(dtype))
        run(lambda bits, y_bits, x, y: loss(library, bits, y_bits, x, y))(BITS, Y_BITS, x, y).backward()
        return [x.grad] if square else [x.grad, y.grad]

    class Ours:
        npk_gram = staticmethod(npk_gram)

    truth, baseline = gradients(reference, torch.float64), gradients(reference, torch.float32)
    for ours, torchs, exact in zip(gradients(Ours, torch.float32, compiled), baseline, truth, strict=True):
        assert_as_good_as_torch(ours, torchs, exact)


def test_gradients_of_a_compiled_matvec_are_those_without():
    def function(x, v, y):
        return npk_matvec(x, BITS, v, y, Y_BITS).sin().sum()

    found, expected = [grad(one) for one in (X, V, Y)], [grad(one) for one in (X, V, Y)]
    compiled(function)(*found).backward()
    function(*expected).backward()
    for ours, eager in zip(found, expected, strict=True):
        assert_same_bits(ours.grad, eager.grad)


def test_the_default_backend_gives_the_same_bits():
    def function(q, x):
        bits = GateBits.pack([q])
        return bits, npk_gram(x, bits)

    q, x = torch.randn(9, 40), torch.randn(9, 4)
    bits, gram = torch.compile(function, fullgraph=True)(q, x)
    assert bits == pack_gates(q)
    assert_same_bits(gram, function(q, x)[1])


def test_a_bad_argument_is_named_under_compile():
    with pytest.raises(Exception, match="scale"):
        compiled(lambda bits: npk_gram(None, bits, scale="depth"))(BITS)


# --- export, transformations, autocast ----------------------------------------------------------------------


class Kernel(torch.nn.Module):
    def forward(self, x: torch.Tensor, bits: GateBits) -> tuple[torch.Tensor, GateBits]:
        return npk_gram(x, bits), bits.select_layers([1])


def test_gatebits_are_an_input_and_a_result_of_an_exported_program():
    program = torch.export.export(Kernel(), (X, BITS))
    bits, x = random_bits(6, dense(40, 33), seed=5), rows_of(6, 5, 5)
    gram, part = program.module()(x, bits)
    assert_same_bits(gram, npk_gram(x, bits))
    assert isinstance(part, GateBits)
    assert part == bits.select_layers([1])


def test_an_exported_program_is_saved_and_takes_any_number_of_rows(tmp_path):
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Kernel(), (X, BITS), dynamic_shapes=({0: rows}, [{0: rows}]))
    torch.export.save(program, tmp_path / "kernel.pt2")
    program = torch.export.load(tmp_path / "kernel.pt2")
    for n in (3, 70):
        bits, x = random_bits(n, dense(40, 33)), rows_of(n, 5)
        assert_same_bits(program.module()(x, bits)[0], npk_gram(x, bits))


def test_gatebits_are_a_pytree():
    leaves, spec = torch.utils._pytree.tree_flatten({"bits": BITS})
    assert len(leaves) == 1
    assert leaves[0] is BITS.words
    assert torch.utils._pytree.tree_unflatten(leaves, spec)["bits"] == BITS
    assert torch.utils._pytree.tree_map(lambda words: words[:2], BITS) == BITS[:2]


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_no_result(x_dtype):
    x, y, v = X.to(x_dtype), Y.to(x_dtype), V.to(x_dtype)

    def everything():
        return (
            npk_gram(x, BITS),
            npk_gram(x, BITS, y, Y_BITS, normalize=True),
            npk_gram(x, BITS, dtype=torch.float64),
            npk_gram(x.double(), BITS, dtype=torch.float64),
            npk_gram(x.abs().byte(), BITS),
            npk_gram(None, BITS),
            npk_diag(x, BITS),
            npk_matvec(x, BITS, v, y, Y_BITS),
            gate_overlap(BITS, Y_BITS),
            GateBits.pack([x]).words,
        )

    expected = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = everything()
    for ours, outside in zip(found, expected, strict=True):
        assert_same_bits(ours, outside)


def test_gradients_flow_under_autocast():
    layer = torch.nn.Linear(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        npk_gram(layer(X), BITS).sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.abs().sum() > 0
