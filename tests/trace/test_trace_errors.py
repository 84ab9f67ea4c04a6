"""Bad arguments of gatedops.trace raise an error that says what is wrong, and the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import made, mlp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gatedops import gated_twin, record_gates, trace

X = torch.zeros(4, 6)


class Forward(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def writes(x: Tensor) -> Tensor:
    """Changes a slice in place."""
    x = x.relu()
    x[:, 1:3].mul_(2)
    return x


def assert_untouched(model: Any) -> None:
    assert not torch._C._len_torch_function_stack()
    assert torch.is_grad_enabled()
    if isinstance(model, nn.Module):
        for module in model.modules():
            assert module.training
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def fails(
    kind: type[Exception], message: str, call: Callable[..., Any], model: Any, *args: Any, **options: Any
) -> None:
    with pytest.raises(kind) as raised:
        call(model, *args, **options)
    assert message in str(raised.value)
    assert_untouched(model)


# --- record_gates -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (None, TypeError, "data: got NoneType, needs a tensor, a DataLoader or an iterable of batches"),
        ("digits", TypeError, "data: got str"),
        ({"x": X}, TypeError, "data: got dict"),
        (TensorDataset(X), TypeError, "data: got TensorDataset, which gives single inputs; wrap it in a DataLoader"),
        ([{"x": X}], TypeError, "data: batch 0 is dict, needs a tensor or a tuple that begins with it"),
        ([X, ()], TypeError, "data: batch 1 is tuple, needs a tensor"),
        (torch.tensor(1.0), ValueError, "data: got shape (), needs at least one row"),
        (X[:0], ValueError, "data: got shape (0, 6), needs at least one row"),
        ([], ValueError, "data: has no batches, needs at least one row"),
        (DataLoader(TensorDataset(X[:0])), ValueError, "data: has no batches"),
        ([X, X[:0]], ValueError, "data: batch 1 has shape (0, 6), needs at least one row"),
        ([torch.tensor(1.0)], ValueError, "data: batch 0 has shape (), needs at least one row"),
        (X.to("meta"), ValueError, "data: is on meta, the model is on cpu; move one of them"),
        ([X, X.to("meta")], ValueError, "data: is on meta, the model is on cpu; move one of them"),
    ],
)
def test_data(data, kind, message, tmp_path):
    fails(kind, message, record_gates, mlp(), data, out=tmp_path / "gates")
    assert list(tmp_path.iterdir()) == []


def test_a_model_on_another_device():
    fails(ValueError, "data: is on cpu, the model is on meta", record_gates, mlp().to("meta"), X)
    fails(ValueError, "example: is on cpu, the model is on meta", trace.steps, mlp().to("meta"), X)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "all"])
def test_batch_size(batch_size):
    message = f"batch_size: got {batch_size!r}, needs a whole number of at least 1"
    fails(ValueError, message, record_gates, mlp(), X, batch_size)


def test_out(tmp_path):
    fails(TypeError, "out: got int, needs the path of a file", record_gates, mlp(), X, out=3)
    fails(ValueError, f"out: {tmp_path} is a folder", record_gates, mlp(), X, out=tmp_path)
    missing = tmp_path / "missing" / "gates"
    fails(ValueError, f"out: {missing} lies in no existing folder", record_gates, mlp(), X, out=missing)


@pytest.mark.parametrize("call", [record_gates, trace.steps])
def test_models_that_are_none(call):
    fails(TypeError, "model: got function, needs a torch.nn.Module", call, F.relu, X)
    fails(TypeError, "model: got type, needs a torch.nn.Module", call, nn.ReLU, X)


@pytest.mark.parametrize("call", [record_gates, trace.steps])
def test_torchscript(call):
    script = torch.jit.script(mlp())
    message = "is TorchScript {}and cannot be looked into; use the module it is from"
    with pytest.raises(ValueError, match="model: " + message.format("")):
        call(script, X)
    with pytest.raises(ValueError, match="model: " + message.format("at '1' ")):
        call(nn.Sequential(nn.Identity(), script), X)


def test_a_model_without_relu():
    fails(ValueError, "model: calls no ReLU, so there are no gates to record", record_gates, nn.Linear(6, 2), X)
    others = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.LeakyReLU(), nn.SiLU(), nn.ReLU6(), nn.ELU(), nn.PReLU())
    named = "its activations have none: GELU (1), LeakyReLU (2), SiLU (3), ReLU6 (4), ELU (5), PReLU (6); record_gates("
    fails(ValueError, named, record_gates, others, X)
    functions = Forward(lambda x: F.mish(x).tanh() + torch.sigmoid(x))
    fails(ValueError, "mish (mish), tanh (tanh), sigmoid (sigmoid); put nn.ReLU", record_gates, functions, X)


def test_layers_that_change_between_batches():
    more = Forward(lambda x: x.relu() if x.sum() == 0 else x.relu().relu())
    data = [X, X, X + 1]
    message = "model: batch 2 has 2 gated layers and batch 0 has 1; every input needs to go through the same layers"
    fails(ValueError, message, record_gates, more, data)
    fewer = Forward(lambda x: x.relu().relu() if x.sum() == 0 else x.relu())
    fails(ValueError, "model: batch 2 has 1 gated layers and batch 0 has 2", record_gates, fewer, data)
    none = Forward(lambda x: x.relu() if x.sum() == 0 else x)
    fails(ValueError, "model: calls no ReLU", record_gates, none, data)
    sizes = [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 5)]
    message = "model: batch 1 has relu (3, 5, 5) where batch 0 has relu (3, 4, 4)"
    fails(ValueError, message, record_gates, nn.ReLU(), sizes)


def test_inputs_that_are_not_the_first_axis():
    fails(ValueError, "relu works on ()", record_gates, Forward(lambda x: x.sum().relu()), torch.randn(9, 6))
    rolled = Forward(lambda x: F.max_pool2d(x.relu().flatten(0, 1).unsqueeze(1), 2))
    fails(ValueError, "max_pool2d works on (8, 1, 4, 4)", record_gates, rolled, torch.zeros(4, 2, 4, 4), max_pool=True)


def test_layers_that_have_no_layout():
    message = "model: the ReLU relu has gates (1, 2, 3, 4, 5), needs (w,), (T, C), (C, H, W) or (C, D, H, W), at least"
    fails(ValueError, message, record_gates, nn.ReLU(), torch.zeros(5, 1, 2, 3, 4, 5))
    fails(ValueError, "model: the ReLU relu has gates (0,)", record_gates, nn.ReLU(), torch.zeros(5, 0))
    integers = torch.zeros(5, 3, dtype=torch.int64)
    message = "model: relu works on torch.int64, needs floating point numbers"
    fails(TypeError, message, record_gates, nn.ReLU(), integers)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.AdaptiveMaxPool2d(1), (2, 3, 4, 4)),
        (lambda x: F.adaptive_max_pool1d(x, 1), (2, 3, 4)),
    ],
)
def test_max_pools_that_cannot_be_recorded(pool, shape):
    net = nn.Sequential(nn.ReLU(), pool if isinstance(pool, nn.Module) else Forward(pool))
    assert record_gates(net, torch.zeros(shape)).n == 2
    message = "is neither max_pool1d nor max_pool2d, and only their choices can be recorded"
    fails(ValueError, message, record_gates, net, torch.zeros(shape), max_pool=True)


# --- steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "kind", "message"),
    [
        (None, TypeError, "example: got NoneType, needs a tensor (n, ...)"),
        (torch.tensor(1.0), ValueError, "example: got shape (), needs (n, ...) with at least one row"),
        (torch.zeros(6), ValueError, "example: got shape (6,), needs (n, ...) with at least one row"),
        (X[:0], ValueError, "example: got shape (0, 6), needs (n, ...) with at least one row"),
    ],
)
def test_examples(example, kind, message):
    fails(kind, message, trace.steps, mlp(), example)


def test_an_operation_outside_the_list_is_named_with_its_place():
    net = nn.Sequential(nn.Linear(6, 4), nn.Sequential(nn.ReLU(), nn.GELU()))
    fails(
        ValueError,
        "model: gelu in 1.1 (GELU) is none of the steps understood: linear, conv1d, conv2d",
        trace.steps,
        net,
        X,
    )
    fails(ValueError, "model: layer_norm in the model (LayerNorm)", trace.steps, nn.LayerNorm(6), X)
    net = nn.Sequential(Forward(lambda x: x * x.relu()))
    fails(ValueError, "mul in 0 (Forward), test_trace_errors.py:", trace.steps, net, X)
    with pytest.raises(ValueError, match="max_pool3d in the model"):
        trace.steps(nn.MaxPool3d(2).eval(), torch.zeros(4, 6, 5, 3, 2))
    net, x = made("transformer", 1)
    with pytest.raises(
        ValueError, match=r"in encoder\.layers\.0\.self_attn .* is a(ttention, a)? product of two signals"
    ):
        trace.steps(net, x)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (lambda x: x + torch.rand(6), (6,), "rand in"),
        (lambda x: x + torch.eye(2, 6), (6,), "add in the model (Forward), test_trace_errors.py"),
        (
            lambda x: x + torch.eye(2, 6),
            (6,),
            "is adding a different constant for each input; give all inputs the same",
        ),
        (lambda x: x * torch.eye(2, 6), (6,), "is multiplying by a different constant for each input; give all inputs"),
        (lambda x: x.unsqueeze(2) + torch.ones(3), (6,), "adding a constant whose shape does not fit (6, 1)"),
        (lambda x: x.mean(1, keepdim=True) + torch.ones(3), (6,), "adding a constant whose shape does not fit (1,)"),
        (lambda x: x.unsqueeze(2) / torch.ones(3), (6,), "multiplying by a constant whose shape does not fit (6, 1)"),
        (
            lambda x: x.unsqueeze(1).relu() + x[:, :1],
            (3,),
            "is a sum (2, 3) with a term (1,); give both terms the",
        ),
        (lambda x: writes(x), (6,), "a change in place of a part of a tensor; compute the parts without"),
        (lambda x: x * torch.ones(6, dtype=torch.float64), (6,), "a conversion from torch.float32 to torch.float64"),
        (lambda x: x.mean(), (6,), "mean"),
        (lambda x: x.mean((0, 1)), (6,), "over the inputs too"),
        (lambda x: x.flatten(), (6,), "a change of shape or order that moves numbers between the rows of a batch"),
        (lambda x: x.roll(1, 0), (6,), "between the rows of a batch; keep the inputs as the first axis"),
        (lambda x: x.t().relu(), (6,), "moving the inputs off the first axis"),
        (lambda x: x.double(), (6,), "a conversion from torch.float32 to torch.float64"),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=2.0), (2, 3, 4), "padding with 2.0; pad with zeros"),
        (lambda x: x.gather(1, (x > 0).long()), (6,), "indices that depend on the input; choose by constant indices"),
        (lambda x: torch.cat([x, x], 0)[:2], (6,), "along the axis of the inputs; concatenate along another axis"),
        (lambda x: torch.cat([x, torch.ones(2, 1)], 1), (6,), "part 1 is a constant, which no input changes; pad the"),
        (lambda x: torch.stack([x, x.relu()], 1), (6,), "write it as torch.cat([a.unsqueeze(1), b.unsqueeze(1)], 1)"),
        (lambda x: F.adaptive_max_pool2d(x, 2), (2, 4, 4), "a max-pool whose choices record_gates does not record"),
        (
            lambda x: F.avg_pool2d(x, 2),
            (4, 4),
            "given inputs (4, 4) without an axis of channels; give it x.unsqueeze(1)",
        ),
        (lambda x: F.max_pool3d(x, 2), (2, 4, 4, 4), "max_pool3d in the model (Forward)"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), (4, 4), "attention, a product of two signals"),
        (lambda x: x @ x.relu(), (4, 4), "matmul in the model"),
        (lambda x: torch.bmm(x, x), (4, 4), "a product of two signals"),
        (lambda x: torch.einsum("nij,njk->nik", x, x), (4, 4), "a product of two signals"),
        (lambda x: torch.ones(3, 4) @ x, (4, 2), "a matrix that no input changes; write it as F.linear(x, matrix.T)"),
        (lambda x: x * x.relu(), (6,), "a product of two signals"),
        (lambda x: x * x, (6,), "a product of two signals"),
        (lambda x: x * x.sigmoid(), (6,), "a product of two signals"),
        (lambda x: F.glu(x), (6,), "a product of two signals"),
        (lambda x: x * (x.relu() > 0), (6,), "a product of two signals"),
        (lambda x: 1 / x, (6,), "a division by a signal"),
        (lambda x: x / x.relu(), (6,), "a division by a signal"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), (6,), "div in the model"),
        (lambda x: x**2, (6,), "a power of a signal"),
        (lambda x: x.square(), (6,), "a power of a signal"),
        (lambda x: F.layer_norm(x, (6,)), (6,), "a norm by statistics of the input itself"),
        (lambda x: F.group_norm(x, 2), (4, 2, 2), "a norm by statistics of the input itself"),
        (lambda x: F.instance_norm(x), (4, 2, 2), "instance_norm in the model"),
        (lambda x: x.softmax(1).relu(), (6,), "softmax in the model (Forward)"),
        (lambda x: x.sigmoid().flip(1) + 1, (6,), "in the middle of the network, and only one at the end is a step"),
        (lambda x: x.softmax(0), (6,), "over the inputs of a batch"),
        (lambda x: x.softmax(1, torch.float64), (6,), "a conversion to torch.float64; leave its argument dtype out"),
        (lambda x: x.clamp(-1), (6,), "put nn.ReLU in its place"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), (6,), "put nn.ReLU in its place"),
        (lambda x: x.masked_fill(x.roll(1, 1) <= 0, 0), (6,), "put nn.ReLU in its place"),
        (lambda x: (x > 0).float() + x, (6,), "gt in the model"),
        (lambda x: torch.maximum(x, torch.zeros(2, 2, 6)), (6,), "maximum in the model"),
        (lambda x: torch.max(x, 1 - x), (6,), "put nn.ReLU in its place"),
        (lambda x: x.max(1).values, (6,), "softmax at the end; npk_gram(x.flatten(1)"),
        (lambda x: F.linear(x, x), (6,), "given a weight, a bias or s"),
        (lambda x: F.dropout(x), (6,), "dropout in the model (Forward), test_trace_errors.py"),
        (lambda x: (x, x.relu()), (6,), "needs to return one tensor that depends on its input"),
        (lambda x: torch.ones(2, 6), (6,), "needs to return one tensor that depends on its input"),
        (lambda x: x.relu() if x.sum() > 0 else x, (6,), "model: torch.export does not follow it: GuardOnData"),
        (
            lambda x: x @ torch.ones(5, 2),
            (6,),
            "example: the model does not take inputs of shape (3, 6); give example the shape",
        ),
    ],
)
def test_functions_that_are_no_steps(function, shape, message):
    fails(ValueError, message, trace.steps, Forward(function), torch.ones(3, *shape))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    net = nn.Sequential(kind(6, 3, batch_first=True), Forward(lambda x: x[0]))
    fails(ValueError, "in 0 (", trace.steps, net, torch.zeros(2, 4, 6))
    fails(ValueError, "a recurrent layer", trace.steps, net, torch.zeros(2, 4, 6))


@pytest.mark.parametrize(
    ("returned", "output", "message"),
    [
        (lambda x: (x, x.relu()), None, "model: returns tuple, needs to return one tensor that depends on its input"),
        (lambda x: (x, x.relu()), None, "choose one by output=, which may be 0, 1"),
        (lambda x: {"a": x, "b": 3}, None, "choose one by output=, which may be 'a'"),
        (lambda x: (x, x.relu()), 2, "output: got 2, needs one of 0, 1, which the model returns"),
        (lambda x: (x, x.relu()), True, "output: got True, needs one of 0, 1"),
        (lambda x: {"a": x}, "b", "output: got 'b', needs one of 'a'"),
        (lambda x: x, 0, "output: got 0, but the model returns one tensor; leave output out"),
        (lambda x: None, None, "model: returns NoneType, needs to return one tensor"),
        (lambda x: (x, torch.ones(2, 6)), 1, "needs to return one tensor that depends on its input"),
    ],
)
def test_outputs(returned, output, message):
    fails(ValueError, message, trace.steps, Forward(returned), X, output=output)


def test_training_mode():
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    fails(ValueError, "batch_norm in 1 (BatchNorm1d) is in training mode; call model.eval() first", trace.steps, net, X)
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout())
    fails(ValueError, "dropout in 1 (Dropout) is in training mode; call model.eval() first", trace.steps, net, X)
    fails(ValueError, "rrelu in 0 (RReLU) is in training mode", trace.steps, nn.Sequential(nn.RReLU()), X)
    with pytest.raises(ValueError, match="feature_dropout in the model"):
        trace.steps(nn.Dropout2d(), torch.ones(1, 2, 3, 3))
    with pytest.raises(ValueError, match="has training=True in evaluation mode too; give it running statistics"):
        trace.steps(nn.BatchNorm1d(6, track_running_stats=False).eval(), X)


# --- gated_twin ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"pool": "both"}, ValueError, "pool: got 'both', needs one of ('feature', 'value')"),
        ({"batch_norm": "none"}, ValueError, "batch_norm: got 'none', needs one of ('value', 'feature', 'off')"),
        ({"gate": "sigmoid"}, ValueError, "gate: got 'sigmoid', needs one of ('hard', 'soft')"),
        ({"gate": "soft", "beta": 0.0}, ValueError, "beta: got 0.0, needs a positive number"),
        ({"gate": "soft", "gain": float("nan")}, ValueError, "gain: got nan, needs a positive number"),
        ({"gate": "soft", "beta": float("inf")}, ValueError, "beta: got inf, needs a positive number"),
        ({"train_features": True}, ValueError, "train_features: no gradient flows through hard gates; use gate='soft'"),
        ({"value": 3}, TypeError, "value: got int, needs a module, a state_dict or None"),
        ({"value": nn.Linear(6, 2)}, ValueError, "value: does not fit the model"),
        ({"value": {}}, ValueError, "value: does not fit the model"),
    ],
)
def test_twin_options(options, kind, message):
    fails(kind, message, gated_twin, mlp(), **options)


def test_twins_of_other_models():
    fails(TypeError, "model: got function, needs a torch.nn.Module", gated_twin, F.relu)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x @ self.weight)

    message = "value: None draws new weights, but nothing draws 0.weight, of Own; give init="
    fails(ValueError, message, gated_twin, nn.Sequential(Own()))
    net = nn.Sequential(Own())
    assert gated_twin(net, net)(X).shape == (4, 6)
    twin = gated_twin(nn.Linear(6, 2))
    with pytest.raises(ValueError, match="model: calls no ReLU, so there are no gates for its twin"):
        twin(X)
    assert not torch._C._len_torch_function_stack()


def test_a_value_network_that_goes_another_way():
    class Depends(nn.Module):
        """Calls one more ReLU if the weight is positive."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.fc(x))
            return F.relu(x[:, :5]) if self.fc.bias[0] > 0 else x

    def twin(feature: float, value: float) -> nn.Module:
        made = gated_twin(Depends())
        made.feature.fc.bias.data.fill_(feature)
        made.value.fc.bias.data.fill_(value)
        return made

    with pytest.raises(
        ValueError, match="value: relu is call 2 of its kind, the feature network has 1; a twin needs a model"
    ):
        twin(-1.0, 1.0)(X)
    with pytest.raises(ValueError, match="value: calls 1 ReLUs, the feature network 2"):
        twin(1.0, -1.0)(X)

    class Narrows(Depends):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.fc(x)[:, : 5 if self.fc.bias[0] > 0 else 6])

    made = gated_twin(Narrows())
    made.feature.fc.bias.data.fill_(1.0)
    made.value.fc.bias.data.fill_(-1.0)
    with pytest.raises(ValueError, match=r"value: relu has shape \(4, 6\), its gate \(4, 5\); a twin needs a model"):
        made(X)
    assert not torch._C._len_torch_function_stack()
