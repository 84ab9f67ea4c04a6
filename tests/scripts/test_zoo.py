"""Tests examples/zoo: the table in docs/coverage.md is true, each "yes" is earned, and run.py takes its options."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import gatedops

ROOT = Path(__file__).resolve().parents[2]
ZOO, DOCS = ROOT / "examples" / "zoo", ROOT / "docs"
STEPS = ("record", "fuse", "twin", "npk")
# These networks are of many kinds and have every form of input; the slow test runs all networks.
FEW = ["ResNet", "SqueezeNet", "MobileNet v2", "TCN", "RNN (relu)", "OPT", "mixture of experts", "MLP", "siamese"]
FEW += ["DCGAN discriminator", "PointNet", "3-d CNN", "style features"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def zoo() -> Iterator[Any]:
    """Gives the function that imports a module of the zoo as run.py does; afterwards removes these modules."""
    sys.path.insert(0, str(ZOO))
    yield importlib.import_module
    sys.path.remove(str(ZOO))
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(ZOO):
            del sys.modules[name]


@pytest.fixture(scope="module")
def run(zoo: Any) -> ModuleType:
    return zoo("run")


def of_docs() -> dict[str, list[str]]:
    """Returns the cells of the four steps in docs/coverage.md for each network."""
    lines = [
        line.strip("|\n ").split(" | ")
        for line in (DOCS / "coverage.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    return {name: cells[1:5] for name, *cells in lines[2:]}


def main(run: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    return run.main()


@cache
def row_of(run: ModuleType, name: str) -> Any:
    """Runs all steps on one network, once for all tests."""
    (network,) = run.chosen([name])
    return run.row_of(network)


def compare(run: ModuleType, names: list[str]) -> None:
    """Compares rows of docs/coverage.md with what the networks of these names give now."""
    documented, table = of_docs(), importlib.import_module("table")
    for name in names:
        outcomes = row_of(run, name).outcomes
        now = [table.escaped(outcomes[step].cell) for step in STEPS]
        assert documented[name] == now, f"{name}: run {table.COMMAND} to bring docs/coverage.md up to date"


def test_the_table_has_every_network(run: ModuleType) -> None:
    assert list(of_docs()) == [network.name for network in run.NETWORKS]


def test_the_page_counts_its_table_and_tells_no_fault() -> None:
    text, cells = (DOCS / "coverage.md").read_text(), list(of_docs().values())
    for step, column in zip(STEPS, zip(*cells, strict=True), strict=True):
        assert f"{step} {sum(cell.startswith('yes') for cell in column)} of {len(cells)}" in text
    assert not any(cell.startswith("FAULT") for row in cells for cell in row)
    assert (DOCS / "img" / "coverage.png").stat().st_size < 200_000


@pytest.mark.parametrize("name", FEW)
def test_the_table_is_true(run: ModuleType, name: str) -> None:
    compare(run, [name])


@pytest.mark.slow
def test_the_whole_table_is_true(run: ModuleType) -> None:
    compare(run, [network.name for network in run.NETWORKS])


def test_a_run_of_some_networks(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "DOCS", tmp_path)
    monkeypatch.setattr(run, "WARM_UP", "OPT")
    assert main(run, monkeypatch, "--only", "MLP", "--json", str(tmp_path / "zoo.json")) == 0
    out = capsys.readouterr().out
    assert "MLP" in out
    assert "record 1 of 1, fuse 1 of 1, twin 1 of 1, npk 1 of 1" in out
    figures = json.loads((tmp_path / "zoo.json").read_text())["MLP"]
    assert figures["parameters"] == 6 * 20 + 20 + 20 * 16 + 16 + 16 * 3 + 3
    assert [figures["steps"][step]["kind"] for step in STEPS] == ["yes"] * 4
    assert all(figures["steps"][step]["seconds"] > 0 for step in STEPS)
    assert list(tmp_path.iterdir()) == [tmp_path / "zoo.json"]


def test_a_whole_run_writes_the_page_and_its_picture(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = tuple(run.chosen(["siamese", "OPT"]))
    monkeypatch.setattr(run, "DOCS", tmp_path)
    monkeypatch.setattr(run, "NETWORKS", few)
    monkeypatch.setattr(run, "WARM_UP", "OPT")
    assert main(run, monkeypatch, "--no-docs") == 0
    assert not list(tmp_path.iterdir())
    assert main(run, monkeypatch) == 0
    assert (tmp_path / "coverage.md").read_text().count("\n| ") == 2 + len(few)
    assert (tmp_path / "img" / "coverage.png").read_bytes().startswith(b"\x89PNG")


def test_bad_options_are_refused_before_work(
    run: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "row_of", lambda network: pytest.fail("work was begun"))
    assert main(run, monkeypatch, "--only", "MLP", "ResNet50") == 2
    error = capsys.readouterr().err
    assert "'ResNet50' is none of the networks: VGG, VGG-BN, ResNet, " in error
    assert main(run, monkeypatch, "--json", str(tmp_path / "none" / "zoo.json")) == 2
    assert "is not a folder; make it first" in capsys.readouterr().err


def flipped(result: tuple[gatedops.GateBits, str]) -> tuple[gatedops.GateBits, str]:
    bits, told = result
    masks = bits.unpack()
    masks[1][3, 5] ^= True
    return gatedops.GateBits.pack(masks), told


def moved(result: Any) -> Any:
    left, drawn, (outputs, gradients) = result
    return left, drawn, (outputs, [gradients[0], gradients[1] * 1.001, *gradients[2:]])


def shifted(fused: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(fused.parameters())[0, 0] += 1e-3
    return fused


PLANTED = {
    "record": (flipped, "the gates of 1 differ"),
    "fuse": (shifted, "the outputs differ"),
    "twin": (moved, "the gradients of the twin"),
    "npk": (lambda result: (result[0] * 1.5, result[1]), "the mean over random weights is 0.6"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_wrong_result_is_a_fault(run: ModuleType, zoo: Any, name: str) -> None:
    """A single wrong gate, output or gradient is a fault, and so is a kernel that is wrong by a factor."""
    step, (change, reason) = zoo("steps").STEPS[name], PLANTED[name]
    (network,) = run.chosen(["MLP"])
    assert zoo("outcome").outcome(step, *network.ready()).kind == "yes"
    planted = replace(step, work=lambda model, example: change(step.work(model, example)))
    found = zoo("outcome").outcome(planted, *network.ready())
    assert found.kind == "fault"
    assert reason in found.detail
    assert found.cell.startswith("FAULT: ")


def test_what_is_left_out_is_a_fault(zoo: Any) -> None:
    """A ReLU that is not recorded is a fault, and so is an activation of another kind that no warning names."""
    steps, x = zoo("steps"), torch.randn(8, 4)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU()).eval()
    mixed = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.LeakyReLU()).eval()
    with pytest.raises(steps.Wrong, match="1 calls of an activation are not recorded"):
        steps.check_record((gatedops.record_gates(net[:2], x), ""), net, x)
    with pytest.raises(steps.Wrong, match="no warning names leaky_relu"):
        steps.check_record((gatedops.record_gates(net[:2], x), ""), nn.Sequential(*net[:2], nn.LeakyReLU()), x)
    with pytest.warns(UserWarning, match="LeakyReLU"):
        result = steps.record(mixed, x)
    assert steps.check_record(result, mixed, x) == "1 layer"


def test_frozen_gates_stay_whatever_the_weights_are(zoo: Any) -> None:
    """With its own weights a network with frozen gates is the network; doubled weights double what each layer gives,
    and its flipped sign leaves all gates as they are. A batch norm and a last sigmoid change nothing."""
    layers = [nn.Conv2d(2, 3, 3, bias=False), nn.LeakyReLU(0.3, inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2)]
    net = nn.Sequential(*layers, nn.ReLU6(), nn.Conv2d(4, 3, 1, bias=False), nn.ReLU()).eval()
    x, frozen = torch.randn(4, 2, 8, 8), zoo("kernel_check").Frozen()
    (plain,) = frozen.run(net, x)
    torch.testing.assert_close(frozen.run(net, x)[0], plain)
    with torch.no_grad():
        nn.init.zeros_(net[3].bias)
        (before,) = frozen.run(net, x)
        net[0].weight *= -2
    torch.testing.assert_close(frozen.run(net, x)[0], -2 * before)
    assert not torch.equal(net(x), -2 * before)
    torch.testing.assert_close(
        frozen.run(nn.Sequential(net, nn.BatchNorm2d(3), nn.Sigmoid()).eval(), x)[0], -2 * before
    )
    with pytest.raises(RuntimeError, match="1 activations and max-pools of the first run are not called again"):
        frozen.run(net[:-1], x)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(0.2)), nn.Linear(6, 3)
        self.second = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x)
        return self.first(x), self.second(x)


def test_options_reach_the_library_and_the_cell(zoo: Any) -> None:
    steps, outcome, x = zoo("steps").STEPS, zoo("outcome").outcome, torch.randn(8, 4)
    net = TwoOutputs().eval()
    assert outcome(steps["record"], net, x, activations="piecewise").cell == "yes (1 layer, piecewise)"
    assert outcome(steps["npk"], net, x, output=1).cell == "yes (output 1)"
    other = replace(steps["npk"], work=lambda model, example, output: steps["npk"].work(model, example, 1 - output))
    assert outcome(other, TwoOutputs().eval(), x, output=1).kind == "fault"


@pytest.mark.parametrize("change", [lambda net: net.train(), lambda net: nn.init.ones_(net[0].weight)])
def test_a_network_that_was_changed_is_a_fault(run: ModuleType, zoo: Any, change: Any) -> None:
    (network,) = run.chosen(["MLP"])
    step = zoo("steps").Step(lambda model, example: change(model), lambda result, model, example: "")
    found = zoo("outcome").outcome(step, *network.ready())
    assert (found.kind, found.detail) == ("fault", "the network itself was changed")


def test_a_yes_tells_of_a_warning(run: ModuleType) -> None:
    """PointNet takes a maximum over its points, which a twin does not replay."""
    outcomes = row_of(run, "PointNet").outcomes
    assert (outcomes["record"].cell, outcomes["twin"].cell) == ("yes (2 layers)", "yes (warns)")
    assert "max takes the value network's own largest" in outcomes["twin"].warnings[0]


def test_the_first_clause_of_a_reason(zoo: Any) -> None:
    shortened = zoo("outcome").shortened
    assert shortened("model: calls no ReLU, so there are no gates") == "calls no ReLU"
    assert shortened("x: got shape (8, 3), needs (n, d); call x.flatten(1)") == "x: got shape (8, 3), needs (n, d)"
    long = "model: cat in a3 (Inception), nets.py:7: return torch.cat([a, b], 1) is none of the steps: linear, relu"
    assert shortened(long) == "cat in a3 is none of the steps"
    assert len(shortened("model: " + "word " * 40)) <= 96
