"""The self-test finds mistakes that GPU kernels typically make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import (
    CPU,
    LAYERS,
    TESTED_OPS,
    assert_found,
    cases_of_op,
    changed,
    of_dtype,
    on_changed_arguments,
    tf32,
)
from torch import Tensor
from torch.nn.functional import linear
from torch.utils import _pytree as pytree

from gatedops.backends.kernels import Kernel
from gatedops.portable.register import OPS
from gatedops.selftest.calls import argument_names, output_names, whole_memory
from gatedops.selftest.compare import fault_of

pytestmark = pytest.mark.usefixtures("one_thread")


# --- mistakes that kernels make -------------------------------------------------------------------------------------


WITH_PRODUCTS = ["npk_gram", "npk_gram_out", "npk_gram_backward", "npk_matvec", "conv_gram", *LAYERS]


@pytest.mark.parametrize("op", WITH_PRODUCTS)
def test_products_in_tf32_are_found(op):
    assert_found(op, on_changed_arguments(op, of_dtype(torch.float32, tf32)))


@pytest.mark.parametrize("op", [op for op in WITH_PRODUCTS if op != "npk_gram_backward"])
def test_products_of_float64_in_float32_are_found(op):
    assert_found(op, on_changed_arguments(op, of_dtype(torch.float64, lambda t: t.float().double())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_in_half_precision_are_found(dtype):
    def kernel(x, weight, bias, words, first):
        if x.dtype != dtype:
            return OPS["gated_linear"](x, weight, bias, words, first)
        y = torch.zeros(*x.shape[:-1], weight.shape[0], dtype=dtype)
        for k in range(0, x.shape[-1], 16):
            y += linear(x[..., k : k + 16], weight[:, k : k + 16])
        y = y if bias is None else y + bias
        return OPS["gate_select"](y.flatten(0, -2)[:, None], words, first).view(y.shape)

    assert_found("gated_linear", kernel)


@pytest.mark.parametrize("op", ["pack_gates", "gate_relu", "gated_linear_relu", "gated_linear_pair"])
def test_gates_that_are_on_at_zero_are_found(op):
    def kernel(*args):
        if op == "pack_gates":
            q = args[0]
            return OPS[op](q if q.dtype == torch.bool else q >= 0)
        results = OPS[op](*args)
        q = args[0] if op == "gate_relu" else linear(*args[:3]).flatten(0, -2)[:, None]
        return *results[:-1], OPS["pack_gates"](q >= 0)

    assert_found(op, kernel)


@pytest.mark.parametrize("op", ["gate_select", "gated_linear", "gated_linear_backward", "gated_linear_pair"])
def test_products_with_the_mask_are_found(op):
    """Such kernels give NaN, because NaN and infinity times 0 are NaN."""

    def mask(words, first, width):
        return OPS["unpack_gates"](words[:, first:], 1, width).squeeze(1)

    def select(q, words, first):
        return q * OPS["unpack_gates"](words[:, first:], *q.shape[1:])

    def layer(x, weight, bias, words, first):
        return linear(x, weight, bias) * mask(words, first, weight.shape[0]).view(*x.shape[:-1], weight.shape[0])

    def backward(grad, x, weight, words, first, bias):
        if words is not None:
            grad = grad * mask(words, first, grad.shape[-1]).view(grad.shape)
        return OPS["gated_linear_backward"](grad, x, weight, None, 0, bias)

    def pair(h, w_f, b_f, z, w_v, b_v, linear_feature):
        h_next, _, words = OPS["gated_linear_pair"](h, w_f, b_f, z, w_v, b_v, linear_feature)
        return h_next, layer(z, w_v, b_v, words, 0), words

    assert_found(op, {"gate_select": select, "gated_linear": layer, "gated_linear_backward": backward}.get(op, pair))


def lambda_of(words, y_words, first, y_first, count, scale, dtype, how):
    """Computes Lambda with a mistake in the order of arithmetic."""
    counts = OPS["gate_overlap"](words, y_words, first, y_first, count, [0] * len(count), "both").to(dtype)
    if how == "rounded once":
        factors = torch.tensor(scale, dtype=torch.float64).to(dtype).double()
        return (counts.double() * factors[:, None, None]).prod(0).to(dtype)
    scaled = [layer * factor for layer, factor in zip(counts, scale, strict=True)]
    if how == "scaled last":
        scaled = [*counts, torch.tensor(scale, dtype=dtype).prod()]
    total = scaled[-1] if how == "layers backwards" else scaled[0]
    for layer in scaled[-2::-1] if how == "layers backwards" else scaled[1:]:
        total = total * layer
    return total


@pytest.mark.parametrize("how", ["rounded once", "scaled last", "layers backwards"])
def test_lambda_in_another_order_of_arithmetic_is_found(how):
    def gram(x, words, y, y_words, factor, y_factor, first, y_first, count, scale, dtype):
        if x is not None or factor is not None or (how == "rounded once" and dtype == torch.float64):
            return OPS["npk_gram"](x, words, y, y_words, factor, y_factor, first, y_first, count, scale, dtype)
        return lambda_of(words, y_words, first, y_first, count, scale, dtype, how)

    def diagonal(words, first, count, scale, dtype):
        return lambda_of(words, None, first, first, count, scale, dtype, how).diagonal().contiguous()

    assert_found("npk_gram", gram)
    assert_found("npk_diag", diagonal)


@pytest.mark.parametrize("op", ["pack_gates", "pack_gates_out", "gate_relu", "gated_linear_relu", "gated_linear_pair"])
def test_padding_that_is_not_zero_is_found(op):
    assert_found(op, changed(op, lambda results: results[-1][:, -1:].bitwise_or_(-(2**31))))


@pytest.mark.parametrize(
    "op", ["gated_linear", "gated_linear_relu", "gated_linear_soft", "gated_linear_pair", "gated_linear_pair_soft"]
)
@pytest.mark.parametrize("bias", ["bias", "b_f", "b_v"])
def test_a_forgotten_bias_is_found(op, bias):
    if bias in argument_names(op):
        assert_found(op, on_changed_arguments(op, lambda name, value: None if name == bias else value))


@pytest.mark.parametrize(
    ("op", "name", "value"),
    [
        ("gate_overlap", "measure", "both"),
        ("gate_overlap", "measure", "agree"),
        ("gated_linear", "first", 0),
        ("gate_select", "first", 0),
        ("gated_linear_pair", "linear_feature", False),
        ("gated_linear_pair_backward", "linear_feature", False),
        ("gated_linear_pair_soft", "gain", 1.0),
        ("gated_linear_pair_soft_backward", "beta", 1.0),
    ],
)
def test_an_argument_that_is_ignored_is_found(op, name, value):
    assert_found(op, on_changed_arguments(op, lambda given, v: value if given == name else v))


def test_a_y_first_that_is_ignored_is_found():
    for op in ("gate_overlap", "npk_gram", "gate_neighbors"):

        def kernel(*args, op=op):
            named = dict(zip(argument_names(op), args, strict=False))
            return OPS[op](*(named | {"y_first": named["first"]}).values())

        assert_found(op, kernel)


def test_neighbours_that_are_as_near_in_another_order_are_found():
    def kernel(words, y_words, first, y_first, count, scale, k, dtype):
        kernel_of_all = (None, words, None, y_words, None, None, first, y_first, count, scale, dtype)
        values = OPS["npk_gram"](*kernel_of_all)
        if y_words is None:
            values.fill_diagonal_(-1)
        found, order = torch.sort(values.flip(1), dim=1, descending=True, stable=True)
        return found[:, :k].contiguous(), values.shape[1] - 1 - order[:, :k]

    assert_found("gate_neighbors", kernel)


TILE = 128


def zero_rows_behind_a_tile(results: list[Any]) -> None:
    for result in results:
        # The counts of gate_overlap come layer by layer.
        rows = result.movedim(1, 0) if result.dim() == 3 and result.dtype == torch.int32 else result
        rows[TILE:] = 0


@pytest.mark.parametrize("op", [op for op in TESTED_OPS if op not in ("conv_gram", "npk_diag", "gate_counts")])
def test_rows_behind_a_tile_that_are_left_out_are_found(op):
    assert_found(op, changed(op, zero_rows_behind_a_tile))


@pytest.mark.parametrize("op", ["gate_overlap", "npk_gram", "gated_linear", "gated_linear_pair", "gated_linear_relu"])
def test_columns_behind_a_tile_that_are_left_out_are_found(op):
    assert_found(op, changed(op, lambda results: results[0][..., TILE:].fill_(0)))


# --- mistakes that show after other calls, in other memory, or when much is computed ---------------------------------

WITH_NEW_RESULTS = [op for op in TESTED_OPS if not output_names(op)]
BACKWARD = [op for op in TESTED_OPS if op.endswith("backward")]


def first_fault(op: str, kernel: Kernel) -> tuple[str, str] | None:
    """Returns the first fault that a case of the op finds."""
    faults = (fault_of(case, kernel, CPU) for case in cases_of_op(op))
    return next((fault for fault in faults if fault is not None), None)


def form_of(value: Any) -> Any:
    """Returns the key of a careless cache, which ignores the numbers."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("op", WITH_NEW_RESULTS)
def test_results_in_memory_that_is_used_again_are_found(op):
    memory: dict[Any, Any] = {}

    def kernel(*args):
        returned = OPS[op](*args)
        kept = memory.setdefault(tuple(map(form_of, args)), returned)
        for old, new in zip(pytree.tree_leaves(kept), pytree.tree_leaves(returned), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)
        return kept

    assert first_fault(op, kernel) == ("wrong", "a later call changed an earlier result")


@pytest.mark.parametrize("by_address", [False, True])
@pytest.mark.parametrize("op", WITH_NEW_RESULTS)
def test_results_of_earlier_values_are_found(op, by_address):
    memory: dict[Any, Any] = {}

    def kernel(*args):
        key = tuple(map(form_of, args))
        if by_address:
            key += tuple(value.data_ptr() for value in args if isinstance(value, Tensor))
        if key not in memory:
            memory[key] = args, OPS[op](*args)  # This keeps the memory in use.
        return pytree.tree_map_only(Tensor, torch.clone, memory[key][1])

    outcome, why = first_fault(op, kernel)
    assert outcome == "wrong"
    assert why.startswith("after a call with other values: result ")


@pytest.mark.parametrize("op", TESTED_OPS)
def test_a_write_around_an_argument_is_found(op):
    def kernel(*args, **kwargs):
        returned = OPS[op](*args, **kwargs)
        for value in args:
            if isinstance(value, Tensor) and value.numel() < whole_memory(value).numel():
                before, whole = value.clone(), whole_memory(value)
                whole.fill_(1)
                if 0 not in value.stride():
                    value.copy_(before)
        return returned

    outcome, why = first_fault(op, kernel)
    assert outcome == "wrong"
    assert why.startswith("the kernel changed memory around its argument ")


@pytest.mark.parametrize(
    ("name", "change", "back"),
    [
        ("the default dtype", lambda: torch.set_default_dtype(torch.float64), torch.set_default_dtype),
        ("the state of the random numbers", lambda: torch.rand(1), lambda _: None),
        (
            "the precision of products",
            lambda: torch.set_float32_matmul_precision("high"),
            lambda _: torch.set_float32_matmul_precision("highest"),
        ),
        (
            "the deterministic mode",
            lambda: torch.use_deterministic_algorithms(False),
            lambda _: torch.use_deterministic_algorithms(True, warn_only=True),  # All tests run in this mode.
        ),
    ],
)
def test_a_changed_state_is_found(name, change, back):
    def kernel(q):
        words = OPS["pack_gates"](q)
        change()
        return words

    dtype = torch.get_default_dtype()
    try:
        assert first_fault("pack_gates", kernel) == ("wrong", f"the kernel changed {name}")
    finally:
        back(dtype)


def test_what_is_not_written_is_found_though_memory_held_it_before():
    """Here torch.empty stands for such memory: it is filled if new memory is filled, else it is right by luck."""

    def kernel(q):
        words = OPS["pack_gates"](q)
        return torch.empty_like(words) if torch.are_deterministic_algorithms_enabled() else words

    torch.use_deterministic_algorithms(False)
    try:
        assert first_fault("pack_gates", kernel) is not None
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)  # All tests run in this mode.


# In these ops an infinite gradient may become NaN (docs/math.md), so no case has one.
WITHOUT_INFINITIES = ("npk_gram_backward", "gated_linear_pair_soft_backward")


@pytest.mark.parametrize(
    ("op", "number"),
    [(op, torch.nan) for op in BACKWARD] + [(op, torch.inf) for op in BACKWARD if op not in WITHOUT_INFINITIES],
)
def test_gradients_that_are_not_finite_and_are_dropped_are_found(op, number):
    def finite(name, value):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return value.nan_to_num(0.0, torch.inf, -torch.inf) if number != number else value.where(value != number, 0.0)

    assert_found(op, on_changed_arguments(op, finite))


@pytest.mark.parametrize(
    "op", ["npk_gram", "npk_gram_out", "npk_matvec", "gated_linear_soft", "gated_linear_pair_soft", "gated_linear"]
)
def test_inputs_that_are_nan_and_are_dropped_are_found(op):
    names = ("x", "h", "z")
    assert_found(op, on_changed_arguments(op, lambda name, v: v.nan_to_num() if name in names and v is not None and
                                          v.is_floating_point() else v))  # fmt: skip


def read_without_strides(tensor: Tensor) -> Tensor:
    """Returns what a kernel reads if it takes the tensor for contiguous."""
    memory = whole_memory(tensor)
    places = torch.arange(tensor.numel()).add(tensor.storage_offset()).clamp(max=memory.numel() - 1)
    return memory[places].view(tensor.shape)


FORMS = [
    (op, name)
    for op in TESTED_OPS
    for name in argument_names(op)
    if name not in output_names(op)
    and any(isinstance(value, Tensor) for case in cases_of_op(op)
            for given, value in zip(argument_names(op), case.make(CPU)[0], strict=False) if given == name)
]  # fmt: skip


@pytest.mark.parametrize(("op", "name"), FORMS)
def test_strides_that_are_ignored_are_found(op, name):
    def dense(given, value):
        return read_without_strides(value) if given == name and isinstance(value, Tensor) else value

    def kernel(*args, **kwargs):
        return OPS[op](*map(dense, argument_names(op), args), **kwargs)

    assert_found(op, kernel)


@pytest.mark.parametrize("op", BACKWARD)
def test_a_gradient_of_stride_0_is_among_the_cases(op):
    def kernel(*args):
        if any(isinstance(value, Tensor) and value.numel() > 1 and max(value.stride()) == 0 for value in args):
            raise RuntimeError("stride 0")
        return OPS[op](*args)

    assert first_fault(op, kernel) == ("raised", "RuntimeError: stride 0")


@pytest.mark.parametrize("op", ["gated_linear_pair", "gated_linear_pair_soft", "gated_linear_pair_out"])
@pytest.mark.parametrize("bias", ["b_f", "b_v"])
def test_no_bias_is_among_the_cases(op, bias):
    def kernel(*args, **kwargs):
        if dict(zip(argument_names(op), args, strict=False))[bias] is None:
            raise RuntimeError("no bias")
        return OPS[op](*args, **kwargs)

    assert first_fault(op, kernel) == ("raised", "RuntimeError: no bias")


def counts_in_half(results: list[Any]) -> None:
    results[0].copy_(results[0].half().to(results[0].dtype))


def test_counts_that_are_rounded_to_half_precision_are_found():
    def gram(x, words, y, y_words, factor, y_factor, first, y_first, count, scale, dtype):
        if x is not None or factor is not None:
            return OPS["npk_gram"](x, words, y, y_words, factor, y_factor, first, y_first, count, scale, dtype)
        counts = OPS["gate_overlap"](words, y_words, first, y_first, count, [0] * len(count), "both").half().to(dtype)
        scaled = [layer * factor for layer, factor in zip(counts, scale, strict=True)]
        total = scaled[0]
        for layer in scaled[1:]:
            total = total * layer
        return total

    def diagonal(words, first, count, scale, dtype):
        return gram(None, words, None, None, None, None, first, first, count, scale, dtype).diagonal().contiguous()

    assert_found("gate_overlap", changed("gate_overlap", counts_in_half))
    assert_found("npk_gram", gram)
    assert_found("npk_diag", diagonal)


def half_linear(x: Tensor, weight: Tensor, bias: Tensor | None, chunk: int) -> Tensor:
    """Computes linear with sums that are rounded to the dtype after every `chunk` products."""
    y = x.new_zeros(*x.shape[:-1], weight.shape[0])
    for k in range(0, x.shape[-1], chunk):
        y = y + (x[..., k : k + chunk].float() @ weight[:, k : k + chunk].float().T).to(x.dtype)
    return y if bias is None else y + bias


def rounded_layer(op: str, dtype: torch.dtype, chunk: int) -> Kernel:
    """Computes a layer whose sums in half precision are rounded in between."""

    def kernel(*args):
        if args[0].dtype != dtype:
            return OPS[op](*args)
        y = half_linear(*args[:3], chunk)
        flat = y.reshape(args[0].shape[:-1].numel(), 1, -1)
        if op == "gated_linear":
            return OPS["gate_select"](flat, *args[3:]).view(y.shape)
        if op == "gated_linear_soft":
            return y * args[3], y
        words = OPS["pack_gates"](flat)
        if op == "gated_linear_relu":
            return y.relu(), words
        v = half_linear(*args[3:6], chunk)
        selected = OPS["gate_select"](v.reshape(flat.shape), words, 0).view(v.shape)
        return y if args[6] else y.relu(), selected, words

    return kernel


def weight_gradient_rounded(dtype: torch.dtype, chunk: int) -> Kernel:
    """Computes a backward whose sums over rows are rounded in between."""

    def kernel(grad, x, weight, words, first, bias):
        results = list(OPS["gated_linear_backward"](grad, x, weight, words, first, bias))
        if grad.dtype == dtype and x is not None:
            flat = grad.reshape(x.shape[:-1].numel(), 1, -1)
            g = (flat if words is None else OPS["gate_select"](flat, words, first)).squeeze(1)
            results[1] = half_linear(g.T, x.reshape(len(g), -1).T, None, chunk)
        return tuple(results)

    return kernel


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_sums_that_are_rounded_in_between_are_found(dtype, chunk):
    for op in ("gated_linear", "gated_linear_relu", "gated_linear_soft", "gated_linear_pair"):
        assert_found(op, rounded_layer(op, dtype, chunk))
    assert_found("gated_linear_backward", weight_gradient_rounded(dtype, chunk))
