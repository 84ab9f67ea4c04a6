"""examples/why.py: what it writes adds up, shows what it says, and it refuses what cannot run, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from script_runs import Importer, status_of

from gatedops import GateBits

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")

QUICK = ("--n", "60", "--width", "20", "--depth", "3", "--epochs", "1", "--show", "3", "--k", "2")

Content = dict[str, Any]


@pytest.fixture
def why(example_module: Importer) -> ModuleType:
    return example_module("why")


def run(why: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Content:
    assert status_of(why, [*QUICK, *options, "--out", str(out)], monkeypatch) == 0
    return json.loads((out / "why.json").read_text())


def test_a_run_writes_json_and_picture(
    why: ModuleType,
    example_module: Importer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    found = run(why, tmp_path, monkeypatch)
    told, errors = capsys.readouterr()
    assert errors == ""
    assert "digits: 48 training and 12 test points, fully connected net with 2 gated layers" in told
    picture = (tmp_path / "why.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) < 200_000
    assert (found["points"], found["widths"], len(found["shown"])) == ({"train": 48, "test": 12}, [20, 20], 3)
    wrong = [one["label"] != one["predicted"] for one in found["shown"]]
    assert wrong == sorted(wrong, reverse=True)
    decoded = example_module("_common.plots").decoded
    for one, strip in zip(found["shown"], found["pictures"], strict=True):
        check_one(one, told)
        assert tuple(decoded(strip).shape) == (8, 8 * 5)


def check_one(one: Content, told: str) -> None:
    points = one["helpers"] + one["opponents"]
    assert 1 <= len(one["helpers"]) <= 2
    total = sum(point["contribution"] for point in points)
    assert one["mean"] + total + one["rest"] == pytest.approx(one["score"], abs=1e-9)
    if one["label"] == one["predicted"]:
        assert one["score"] == pytest.approx(one["score_of_label"], abs=1e-9)
    else:
        assert one["score"] > one["score_of_label"]
    whole = {round(abs(point["contribution"]) / point["share"], 6) for point in points}
    assert max(whole) == pytest.approx(min(whole), rel=1e-5)
    for name, sign in (("helpers", 1), ("opponents", -1)):
        sizes = [sign * point["contribution"] for point in one[name]]
        assert sizes == sorted(sizes, reverse=True)
        assert all(size > 0 for size in sizes)
    for point in points:
        assert all(0 <= share <= 1 for share in point["share_on_in_both"])
        assert f"{point['contribution']:+.4f}" in told
    assert f"{one['test_point']}: a {one['label']}, taken for {one['predicted']}" in told


def test_as_many_helpers_as_training_points(why: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there are fewer of them, and fewer opponents, and nothing is left for others."""
    pytest.importorskip("matplotlib")
    found = run(why, tmp_path, monkeypatch, "--data", "random", "--n", "10", "--show", "1", "--k", "8")
    assert (tmp_path / "why.png").exists()
    (one,) = found["shown"]
    assert len(one["helpers"]) + len(one["opponents"]) == 8
    assert one["rest"] == pytest.approx(0, abs=1e-6)


def test_the_same_options_give_the_same_figures(
    why: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (run(why, tmp_path / name, monkeypatch, "--depth", "2", "--no-plot") for name in "ab")
    assert one["shown"] == other["shown"]
    assert not list(tmp_path.rglob("*.png"))


def test_wrong_points_come_first_and_then_uncertain_ones(why: ModuleType) -> None:
    scores = torch.tensor([[9.0, 1.0], [6.0, 5.0], [2.0, 8.0], [3.0, 9.0], [5.0, 4.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 0])
    # 2, 3 and 4 are wrong, by 6, 6 and 1.
    assert why.chosen(scores, labels, 4).tolist() == [2, 3, 1, 0]
    assert why.chosen(scores, labels, 3).tolist() == [2, 3, 1]
    assert why.chosen(scores, labels, 6).tolist() == [2, 3, 4, 1, 0, 5]
    assert why.chosen(scores, torch.tensor([0, 0, 1, 1, 0, 0]), 2).tolist() == [1, 4]
    assert why.chosen(scores, 1 - scores.argmax(1), 5).tolist() == [5, 0, 2, 3, 1]


def test_the_strip_has_the_images_in_their_order(why: ModuleType) -> None:
    images = torch.arange(4 * 3 * 2 * 5, dtype=torch.uint8).view(4, 3, 2, 5)
    grey = images.double().mean(1)
    made = why.strip(images[3], images, torch.tensor([2, -1, 0]))
    assert torch.equal(made.double(), torch.cat([grey[3], grey[2], torch.zeros(2, 5), grey[0]], 1).round())


def test_mean_shares(why: ModuleType) -> None:
    made = torch.Generator().manual_seed(0)
    masks, others = ([torch.rand(n, w, generator=made) > 0.5 for w in (40, 7)] for n in (3, 5))
    found = why.mean_shares(GateBits.pack(masks), GateBits.pack(others))
    for row in range(3):
        for layer, (a, b) in enumerate(zip(masks, others, strict=True)):
            assert found[row][layer] == pytest.approx(float((a[row] & b).double().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--n 60 --show 13", "--show 13 is more than the 12 test points"),
        ("--n 60 --k 49", "--k 49 is more than the 48 training points"),
        ("--n 9", "argument --n: must be at least 10, got 9"),
        ("--n 1798", "n must be between 2 and 1797"),
        ("--data mnist", "data_dir is needed for mnist"),
        ("--depth 1", "argument --depth: must be at least 2, got 1"),
        ("--ridge 0", "argument --ridge: must be above 0, got 0"),
        ("--k 0", "argument --k: must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    options: str,
    message: str,
    why: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(why, ["--out", str(tmp_path), *options.split()], monkeypatch) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
