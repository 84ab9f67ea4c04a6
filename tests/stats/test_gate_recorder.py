"""GateRecorder records a training loop and keeps the records in files; plots draw its history."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from strategies import dense, random_bits
from tolerances import FLOAT64_SUMS
from torch import Tensor, nn

from gatedops import GateBits, count_regions, gate_stats, record_gates
from gatedops.stats import (
    GateRecorder,
    class_overlap,
    gate_change,
    npk_alignment,
    npk_alignments,
    plot_alignments,
    plot_class_overlap,
    plot_class_pairs,
    plot_gate_change,
    plot_gate_shares,
    plot_gate_stats,
    plot_history,
)

X = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(30) % 3


def a_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))


def train(net: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), LABELS).backward()
        optimizer.step()


def recorded(folder=None, *, labels: Tensor | None = LABELS) -> tuple[GateRecorder, list[GateBits]]:
    """Records a net three times in training; returns the recorder and the gates of each record."""
    net, recorder, bits = a_net(), GateRecorder(labels=labels), []
    for step in (0, 10, 20):
        recorder(net, X, step)
        bits.append(record_gates(net, X))
        train(net)
    if folder is not None:
        recorder.save(folder)
    return recorder, bits


def test_a_record_holds_the_statistics_of_its_gates():
    recorder, (first, second, third) = recorded()
    record = recorder.history["records"][2]
    assert record["step"] == 20
    assert [layer["name"] for layer in record["layers"]] == ["1", "3"]
    stats, regions, overlap = gate_stats(third), count_regions(third), class_overlap(third, LABELS)
    parts = [
        (record["net"], stats.net, regions.net, overlap.net, [0, 1]),
        *zip(record["layers"], stats.layers, regions.layers, overlap.layers, [[0], [1]], strict=True),
    ]
    for found, one, count, shared, layers in parts:
        now, before, start = (bits.select_layers(layers) for bits in (third, second, first))
        assert {key: found[key] for key in one.summary()} == one.summary()
        assert found["regions"] == count
        assert (found["overlap_within"], found["overlap_across"]) == (shared.within, shared.across)
        assert found["change_from_first"] == gate_change(start, now).net.share
        assert found["change_from_previous"] == gate_change(before, now).net.share > 0
        assert found["alignment_to_first"] == npk_alignment(start, now)
        assert found["alignment_to_previous"] == npk_alignment(before, now)


def test_the_first_record_has_no_previous_one():
    net = recorded()[0].history["records"][0]["net"]
    assert (net["change_from_first"], net["change_from_previous"], net["alignment_to_previous"]) == (0, None, None)
    assert net["alignment_to_first"] == pytest.approx(1, rel=FLOAT64_SUMS)


def test_without_labels_there_are_no_overlaps():
    net = recorded(labels=None)[0].history["records"][0]["net"]
    assert "overlap_within" not in net
    assert "share_on" in net


def test_record_uses_the_model_and_inputs_given_at_the_start():
    net = a_net()
    recorder = GateRecorder(net, X, LABELS, batch_size=7)
    train(net)
    assert recorder.record(4) == GateRecorder(labels=LABELS)(net, X, 4)
    assert recorder.history["inputs"] == 30


def test_recording_leaves_the_training_as_it_was():
    plain, watched = a_net(), a_net()
    watched.train()
    recorder = GateRecorder(watched, X)
    for step in range(3):
        recorder.record(step)
        train(watched, 1)
        train(plain, 1)
    assert watched.training
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dead_nets_have_no_alignment_and_a_history_of_valid_json():
    net = a_net()
    with torch.no_grad():
        net[0].bias.fill_(-1e6)
    recorder = GateRecorder(net, X)
    assert recorder.record(0)["layers"][0]["alignment_to_first"] is None
    assert recorder.history["records"][0]["layers"][0]["dead"] == 20
    json.dumps(recorder.history, allow_nan=False)


def test_maps_have_dead_channels(tmp_path):
    net = nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 4, (1, 2)), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), nn.ReLU()
    )
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([-1e6, 0, 1e6, -1e6]))
    recorder = GateRecorder(net, X)
    maps, dense = recorder.record(0)["layers"]
    assert (maps["dead_channels"], maps["always_on_channels"]) == (2, 1)
    assert "dead_channels" not in dense
    assert "dead_channels" not in recorder.history["records"][0]["net"]
    recorder.save(tmp_path)
    assert GateRecorder.load(tmp_path).history == recorder.history


# --- files --------------------------------------------------------------------------------------------------


def test_loading_gives_the_history_that_was_saved(tmp_path):
    recorder, _ = recorded(tmp_path / "run")
    loaded = GateRecorder.load(tmp_path / "run")
    assert loaded.history == recorder.history
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"history.json", "gates-0.safetensors", "gates-20.safetensors"}


def test_a_loaded_recorder_goes_on_where_it_was(tmp_path):
    recorder, _ = recorded(tmp_path)
    net = a_net(seed=1)
    expected = recorder(net, X, 30)
    resumed = GateRecorder.load(tmp_path, net, X)
    assert resumed.record(30) == expected
    assert resumed.history == recorder.history
    resumed.save(tmp_path)
    assert {path.name for path in tmp_path.glob("gates-*")} == {"gates-0.safetensors", "gates-30.safetensors"}


def test_saving_cut_off_leaves_the_state_before(tmp_path, monkeypatch):
    recorder, _ = recorded(tmp_path)
    before = copy.deepcopy(recorder.history)
    recorder(a_net(seed=1), X, 30)
    monkeypatch.setattr("gatedops.stats.recorder.json.dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        recorder.save(tmp_path)
    monkeypatch.undo()
    assert GateRecorder.load(tmp_path).history == before


def test_loading_with_other_inputs_is_an_error_of_the_inputs(tmp_path):
    recorded(tmp_path)
    with pytest.raises(ValueError, match=r"^labels: got shape \(30,\), needs \(20,\)"):
        GateRecorder.load(tmp_path, a_net(), X[:20])
    with pytest.raises(ValueError, match=r"^x: holds other inputs"):
        GateRecorder.load(tmp_path, a_net(), X + 1).record(30)


@pytest.mark.parametrize("text", ["", "[", "[]", "{}", '{"format": "other"}', '{"format": "gatedops.GateRecorder/1"}'])
def test_a_damaged_history_is_an_error_that_names_the_file(tmp_path, text):
    recorded(tmp_path)
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match=r"history\.json: holds no recording"):
        GateRecorder.load(tmp_path)


def test_missing_files_are_file_not_found_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        GateRecorder.load(tmp_path)
    recorded(tmp_path)
    (tmp_path / "gates-0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="gates-0"):
        GateRecorder.load(tmp_path)


# --- errors -------------------------------------------------------------------------------------------------

ERRORS = {
    "no model": ("record: has no model", lambda r: GateRecorder().record(0)),
    "a model without inputs": ("x: is missing", lambda r: GateRecorder(a_net())),
    "inputs without a model": ("model: is missing", lambda r: GateRecorder(None, X)),
    "inputs that are not a tensor": ("x: got list", lambda r: r(a_net(), [1, 2], 30)),
    "other inputs": ("x: holds other inputs", lambda r: r(a_net(), X + 1, 30)),
    "fewer inputs": ("x: holds other inputs", lambda r: r(a_net(), X[:20], 30)),
    "a model of another shape": (
        "model: has 1 layer, the first record has 2",
        lambda r: r(nn.Sequential(nn.Linear(5, 2), nn.ReLU()), X, 30),
    ),
    "a model without a ReLU": ("model: calls no ReLU", lambda r: r(nn.Linear(5, 2), X, 30)),
    "no module": ("model: got", lambda r: r(torch.relu, X, 30)),
    "the same step again": ("step: got 20 after 20", lambda r: r(a_net(), X, 20)),
    "half a step": ("step: got float", lambda r: r(a_net(), X, 20.5)),
    "labels of another number": ("labels: got shape", lambda r: GateRecorder(a_net(), X, LABELS[:4])),
    "labels of other inputs": ("labels: got shape", lambda r: GateRecorder(labels=LABELS[:4])(a_net(), X, 0)),
    "one label": ("labels: got shape", lambda r: GateRecorder(labels=3)),
    "saving nothing": ("save: nothing", lambda r: GateRecorder().save("nowhere")),
}


@pytest.mark.parametrize("what", ERRORS)
def test_a_bad_argument_is_named_and_nothing_is_recorded(what):
    message, call = ERRORS[what]
    recorder, _ = recorded()
    before = copy.deepcopy(recorder.history)
    with pytest.raises((ValueError, TypeError), match=message):
        call(recorder)
    assert recorder.history == before


# --- pictures -----------------------------------------------------------------------------------------------

A, B = random_bits(12, dense(40, 33)), random_bits(12, dense(40, 33), seed=1)
PICTURES = {
    "statistics": lambda ax: plot_gate_stats(gate_stats(A), ax),
    "shares": lambda ax: plot_gate_shares(gate_stats(A), ax),
    "change": lambda ax: plot_gate_change(gate_change(A, B), ax),
    "overlap": lambda ax: plot_class_overlap(class_overlap(A, [0, 1, 2] * 4), ax),
    "pairs": lambda ax: plot_class_pairs(class_overlap(A, [0, 1, 2] * 4), ax=ax),
    "alignments": lambda ax: plot_alignments(npk_alignments([A, B]), ["before", "after"], ax),
    "history": lambda ax: plot_history(recorded()[0].history, "change_from_previous", ax),
}


@pytest.fixture
def _pyplot():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")


@pytest.mark.usefixtures("_pyplot")
@pytest.mark.parametrize("what", PICTURES)
def test_a_picture_is_drawn_into_new_or_given_axes(what, tmp_path):
    from matplotlib import pyplot

    axes = PICTURES[what](None)
    axes.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5_000
    assert axes.get_title()
    figure, given = pyplot.subplots()
    assert PICTURES[what](given) is given
    assert given.figure is figure


@pytest.mark.usefixtures("_pyplot")
def test_bars_and_lines_are_the_numbers():
    change = gate_change(A, B)
    heights = [bar.get_height() for bar in plot_gate_change(change).patches]
    assert heights == [*(layer.share for layer in change.layers), change.net.share]
    recorder, _ = recorded()
    axes = plot_history(recorder.history, "entropy")
    net = next(line for line in axes.lines if line.get_label() == "net")
    assert net.get_xdata().tolist() == [0, 10, 20]
    assert net.get_ydata().tolist() == [record["net"]["entropy"] for record in recorder.history["records"]]


def test_a_picture_of_what_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"quantity: got 'loss', the history has .*'share_on'"):
        plot_history(recorded()[0].history, "loss")
    with pytest.raises(ValueError, match="quantity: got 'entropy', the history has no records"):
        plot_history(GateRecorder().history, "entropy")
    with pytest.raises(ValueError, match="alignments: got shape"):
        plot_alignments(torch.eye(2), ["one"])


def test_a_missing_matplotlib_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in PICTURES.values():
        with pytest.raises(ModuleNotFoundError, match="plots need matplotlib, which is not installed: pip install"):
            draw(None)
