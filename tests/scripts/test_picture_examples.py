"""examples/gate_walk.py, rotations.py and path_sgd.py: they write one picture, and what it shows is right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from script_runs import EXAMPLES, Importer, run_as_main

import gatedops
from gatedops import data

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gate_walk", (), "for which the net says"),
        ("rotations", ("--data", "random", "--channels", "4", "--dense", "6"), "circular"),
        ("path_sgd", ("--epochs", "1", "--rates", "0.1"), "PathSGD"),
    ],
)
@pytest.mark.usefixtures("example_module")
def test_a_whole_run_writes_a_picture(
    name: str,
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    status = run_as_main(EXAMPLES / f"{name}.py", [*options, "--out", "results"], monkeypatch)
    told, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    (picture,) = (tmp_path / "results").iterdir()
    assert picture.name == f"{name}.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert words in told


def test_the_picture_shows_every_gate_where_it_is(example_module: Importer) -> None:
    tiles = example_module("gate_walk").tiles
    generator = torch.Generator().manual_seed(0)
    gates = torch.rand(5, 3, 2, generator=generator) > 0.5
    mosaic = tiles(gates, "gate")
    assert mosaic.shape == (2 * 4 - 1, 3 * 3 - 1)
    assert torch.equal(mosaic[4:7, 3:5] == 2, gates[4])
    assert torch.equal(mosaic[0:3, 0:2] == 2, gates[0])
    assert not mosaic[3].any()
    assert torch.equal(tiles(gates[0, 0].repeat(8), "gate") == 2, gates[0, 0].repeat(8).view(4, 4))
    x = torch.randn(1, 2, 4, 6, generator=generator)
    net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    select = gatedops.record_gates(net, x, max_pool=True).unpack()[1]
    best = torch.nn.functional.max_pool2d(x, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(tiles(select[0], "select")[:, :6] == 2, ((x == best) & (x > 0))[0, 0])


def test_only_circular_padding_keeps_the_kernel_under_rotations(example_module: Importer) -> None:
    script, images = example_module("rotations"), data.load("digits", n=10)
    args = script.parser().parse_args(["--channels", "4", "5", "--dense", "6"])
    found = script.over_rotations(images.inputs(images.train_images), args)
    assert found["circular"][0] < 1e-6 < 0.1 < found["zeros"][0]
    torch.testing.assert_close(found["zeros"][1].mean(), torch.tensor(1.0, dtype=torch.float64))


def test_path_sgd_learns_the_same_from_both_starts_and_sgd_does_not(example_module: Importer) -> None:
    script = example_module("path_sgd")
    found = script.curves(script.parser().parse_args(["--epochs", "1", "--rates", "0.01"]))
    losses = {key: torch.tensor(curve.losses, dtype=torch.float64) for key, curve in found.items()}
    torch.testing.assert_close(losses["PathSGD", "unbalanced"], losses["PathSGD", "balanced"], rtol=1e-9, atol=0)
    assert losses["PathSGD", "balanced"][-1] < losses["PathSGD", "balanced"][0]
    assert abs(losses["SGD", "unbalanced"][-1] / losses["SGD", "balanced"][-1] - 1) > 0.01
