"""Models, and what is made of them, work on the device "shadow" (shadow.py) as on the CPU; test_portable_device.py runs
this in a process of its own."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import shadow
import torch
import torch.nn.functional as F
from architectures import network
from dgns import HARD, VARIANTS, inputs_of, model_of
from nets import INPUTS, made
from recipes import Recipe
from shadow_tools import assert_alike, moved, without_float64
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gatedops import (
    DGN,
    GateBits,
    GateCache,
    fuse_relu,
    gated_twin,
    npf,
    npk,
    npv,
    ntk,
    path_norm,
    record_gates,
)
from gatedops.path_kernels.regression import fit, one_hot
from gatedops.solve import select_ridge
from gatedops.stats import GateRecorder

shadow.setup()

DGNS = [(a, v) for a in ("fc", "gconv") for v in VARIANTS] + [("strided net", "DL"), ("strided net", "FR-II")]


def there(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("shadow")


def dgn(architecture: str, variant: str, **changed: Any) -> DGN:
    torch.manual_seed(0)  # Weights are drawn from this generator.
    return model_of(architecture, variant, **changed)


def steps_of(model: nn.Module, x: Tensor, labels: Tensor, steps: int = 2) -> list[Tensor]:
    """Returns the losses of some training steps, and the parameters after them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).flatten(1), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses + [p.detach() for p in model.parameters()]


def labels_of(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % 2


def assert_trained_alike(model: nn.Module, x: Tensor) -> None:
    """Checks that training on shadow does not wait, and gives what the CPU gives."""
    twin, arguments = there(model), moved((x, labels_of(x)))
    with shadow.no_host_copies():
        found = steps_of(twin, *arguments)
    assert_alike(found, steps_of(model, x, labels_of(x)))


# --- deep gated networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "variant"), DGNS)
def test_dgn_is_trained_as_on_the_cpu(architecture, variant):
    assert_trained_alike(dgn(architecture, variant), inputs_of(architecture, 6))


def test_dgn_is_trained_by_adam():
    model, x = dgn("fc", "DL"), inputs_of("fc", 6)
    results = []
    for device in ("shadow", "cpu"):
        twin = copy.deepcopy(model).to(device)
        optimizer = torch.optim.Adam(twin.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            twin(x.to(device)).square().sum().backward()
            optimizer.step()
        results.append([p.detach() for p in twin.parameters()])
    assert_alike(*results)


def assert_drawn_on_the_cpu(counts: Counter[str]) -> None:
    """Checks that numbers are drawn on the CPU, because a real device refuses a generator of the CPU."""
    assert counts
    assert not [name for name in counts if "rand" in name or "uniform" in name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_seed_gives_the_same_weights_on_the_device(variant):
    with shadow.record() as counts:
        found, expected = (list(dgn("gconv", variant, device=d).parameters()) for d in ("shadow", "cpu"))
    assert_drawn_on_the_cpu(counts)
    assert_alike(found, expected, exact=True)


@pytest.mark.parametrize("architecture", ["fc", "gconv"])
@pytest.mark.parametrize("variant", HARD)
def test_dgn_gates_are_cached(architecture, variant, tmp_path):
    model, x = dgn(architecture, variant), inputs_of(architecture, 6)
    twin, inputs = there(model), x.to("shadow")
    cache = GateCache.build(twin, inputs, 4)
    in_file = GateCache.build(twin, inputs, 4, tmp_path / "gates")
    assert cache.bits == GateCache.build(model, x, 4).bits.to("shadow") == in_file.bits.to("shadow")
    with shadow.no_host_copies():
        found = twin(inputs[1:4], gates=cache[1:4])
    assert_alike(found, model(x[1:4]))


# --- nets of others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_pool", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_batches_are_recorded_without_waiting(name, max_pool):
    net, x = made(name, 9)
    twin, inputs = there(net), x.to("shadow")
    with shadow.no_host_copies(forbid=False) as in_one:  # This sees the search for the rows, before the first batch.
        record_gates(twin, inputs, 9, max_pool=max_pool)
    with shadow.no_host_copies(forbid=False) as in_three:
        found = record_gates(twin, inputs, 3, max_pool=max_pool)
    assert len(in_three) == len(in_one) > 0
    assert found == record_gates(net, x, 3, max_pool=max_pool).to("shadow")


def test_gates_of_a_cpu_data_loader_are_recorded_into_a_file(tmp_path):
    net, x = made("vgg", 7)
    batches = (inputs.to("shadow") for (inputs,) in DataLoader(TensorDataset(x), batch_size=3))
    found = record_gates(there(net), batches, out=tmp_path / "gates")
    assert found.device.type == "cpu"
    assert found == record_gates(net, x, 3) == GateBits.load(tmp_path / "gates")


@pytest.mark.parametrize("name", INPUTS)
def test_a_fused_net_is_trained_as_on_the_cpu(name):
    net, x = made(name, 5)
    fused = fuse_relu(there(net), x.to("shadow"))
    assert fused.fuse_report == fuse_relu(net, x).fuse_report
    assert record_gates(fused, x.to("shadow")) == record_gates(fuse_relu(net, x), x).to("shadow")
    assert_trained_alike(fuse_relu(net, x), x)


@pytest.mark.parametrize("gate", ["hard", "soft"])
@pytest.mark.parametrize("name", INPUTS)
def test_a_twin_is_trained_as_on_the_cpu(name, gate):
    net, x = made(name, 5)
    torch.manual_seed(1)
    assert_trained_alike(gated_twin(net, gate=gate, train_features=gate == "soft").eval(), x)


@pytest.mark.parametrize("batch_norm", ["value", "feature", "off"])
def test_a_twin_takes_what_the_feature_network_does(batch_norm):
    net, x = made("vgg", 5)
    twin = gated_twin(there(net), net, "value", batch_norm)  # The weights come from the CPU.
    assert_alike(twin(x.to("shadow")), gated_twin(net, net, "value", batch_norm)(x))


# --- autocast, torch.compile, torch.export ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fc DL", "fc FR-II", "gconv DL", *INPUTS])
def test_autocast_gives_what_it_gives_on_the_cpu(name):
    results = []
    for device in ("shadow", "cpu"):
        if name in INPUTS:
            net, x = made(name, 5)
            net = fuse_relu(net, x)
        else:
            net, x = dgn(*name.split(), dtype=torch.float32), inputs_of(name.split()[0], 5, dtype=torch.float32)
        net, x = net.to(device), x.to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            y = net(x)
        y.float().square().sum().backward()
        results.append([y, *(p.grad for p in net.parameters())])
    assert results[0][0].dtype == torch.bfloat16
    found, expected = results
    assert_alike(found, expected, tolerance=0.05)


@pytest.mark.parametrize("name", ["fc DL", "gconv FR-II", "vgg"])
def test_compiled_nets_are_trained_as_on_the_cpu(name):
    torch._dynamo.reset()
    architecture, _, variant = name.partition(" ")
    net, x = (dgn(architecture, variant), inputs_of(architecture, 6)) if variant else made(name, 6)
    net = net if variant else fuse_relu(net, x)
    compiled = torch.compile(there(net), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 6):
        found = steps_of(compiled, x[:n].to("shadow"), labels_of(x[:n]).to("shadow"), 1)
        assert_alike(found, steps_of(net, x[:n], labels_of(x[:n]), 1))


@pytest.mark.parametrize("name", ["fc FR-II", "gconv DL"])
def test_exported_nets_give_what_they_give_on_the_cpu(name):
    architecture, variant = name.split()
    net, x = dgn(architecture, variant), inputs_of(architecture, 9)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(there(net), (x[:4].to("shadow"),), dynamic_shapes=({0: rows},))
    assert_alike(program.module()(x.to("shadow")), net(x))


# --- kernels of models --------------------------------------------------------------------------------------------

KERNELS = [
    "fully connected",
    "average pool, padding not counted",
    "overlapping max-pool with padding",
    "batch norm",
    "residual, strided shortcut",
    "constants",
]


@functools.cache
def on_shadow(name: str) -> Recipe:
    return there(network(name))


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_those_on_the_cpu(name):
    net, twin = network(name), on_shadow(name)
    x, y = net.inputs(5), net.inputs(3, seed=1)
    inputs, others = moved((x, y))
    for options in ({}, {"kernel": "ntk", "sigma": 0.5, "bias": "path"}):
        for side in (None, y):
            assert_alike(
                npk(twin, inputs, moved(side), dtype=torch.float64, return_exponent=True, **options),
                npk(net, x, side, dtype=torch.float64, return_exponent=True, **options),
            )
    assert_alike(ntk(twin, inputs, others, outputs="full"), ntk(net, x, y, outputs="full"))
    assert_alike(npf(twin, inputs), npf(net, x))
    assert_alike([npv(twin, inputs), path_norm(twin, 1.5, inputs)], [npv(net, x), path_norm(net, 1.5, x)])


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_float32_need_no_float64(name):
    net = copy.deepcopy(network(name)).float()
    x, twin = net.inputs(5).float(), there(net)
    inputs = x.to("shadow")
    with without_float64():
        found = [npk(twin, inputs), ntk(twin, inputs)]
    assert_alike(found, [npk(net, x), ntk(net, x)])


def test_npk_reads_a_few_numbers_and_nothing_large():
    """These are the ranges of x and y, how far outputs of trial calls differ, and whether rows of the kernel vanish."""
    net = network("overlapping max-pool with padding")
    x, y = moved((net.inputs(5), net.inputs(3, seed=1)))
    on_device = on_shadow("overlapping max-pool with padding")
    with shadow.no_host_copies(
        forbid=False
    ) as searching:  # This sees the search for the rows of the inputs inside the net.
        record_gates(on_device, x, max_pool=True)
        record_gates(on_device, y, max_pool=True)
    with shadow.no_host_copies(forbid=False) as seen:
        npk(on_device, x, y)
    assert Counter(seen) - Counter(searching) == {
        "aten::_local_scalar_dense: reads a value": 8,
        "aten::nonzero: reads the size of its result": 1,
    }


@pytest.mark.usefixtures("exported_once")
def test_kernels_of_cpu_nets_do_not_depend_on_the_default_device():
    net = network("average pool, padding not counted")
    x = net.inputs(5)
    expected = [npk(net, x), npf(net, x), npv(net, x), path_norm(net, 2, x)]
    with without_float64(), torch.device("shadow"):
        found = [npk(net, x), npf(net, x), npv(net, x), path_norm(net, 2, x)]
    assert_alike(found, expected, exact=True, device="cpu")


def test_regression_works_on_the_device():
    rows, labels = inputs_of("fc", 20), torch.arange(20) % 3
    gram = rows @ rows.T
    expected = fit(gram, one_hot(labels, 3)).predict(gram)
    ridge = select_ridge(gram, labels)
    with torch.device("shadow"):  # It must also work if shadow is torch's default device.
        kernel, classes = moved((gram, labels))
        assert_alike(fit(kernel, one_hot(classes, 3)).predict(kernel), expected)
        with shadow.record() as counts:
            assert select_ridge(kernel, classes) == select_ridge(gram, labels) == ridge
        assert_drawn_on_the_cpu(counts)
    single = kernel.float()
    with without_float64(), pytest.raises(ValueError, match="k_train: is on shadow:0, which has no float64"):
        fit(single, classes)


# --- statistics of models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("float64", [True, False])
def test_a_recording_is_the_same_and_goes_on_from_a_file(float64, tmp_path):
    net, x = made("mlp", 12)
    labels = labels_of(x)
    twin, inputs = there(net), x.to("shadow")
    here, found = GateRecorder(net, x, labels), GateRecorder(twin, inputs, labels)
    with nullcontext() if float64 else without_float64():
        for step in range(3):
            found.record(step)
            here.record(step)
            with torch.no_grad():
                for model in (net, twin):
                    model[0].weight.mul_(-1 if step else 0.5)
            if step == 1:
                found.save(tmp_path)
                found = GateRecorder.load(tmp_path, twin, inputs)
    assert_alike(found.history, here.history)


# --- gates of the cache on the CPU --------------------------------------------------------------------------------


def test_a_loaded_cache_is_moved_by_hand(tmp_path):
    model, x = dgn("fc", "FR-II"), inputs_of("fc", 6)
    twin = there(model)
    GateCache.build(twin, x.to("shadow"), path=tmp_path / "gates")
    cache = GateCache.load(tmp_path / "gates")
    cache.require_fits(twin)
    assert_alike(twin(x[:2].to("shadow"), gates=cache[:2].to("shadow")), model(x[:2]))
