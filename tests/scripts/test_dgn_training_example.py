"""Runs examples/dgn_training.py on small tasks.

The tests check what it writes, what it refuses, that it goes on to the same figures after a kill, and that networks
trained together equal networks trained alone.
"""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from script_runs import EXAMPLES, STOPPING, Importer, environment, status_of
from tolerances import assert_close_in_float64
from torch import Tensor, nn

import gatedops
from gatedops import GateBits, reference
from gatedops.nn import conv_spec, fc_spec
from gatedops.path_kernels import regression
from gatedops.solve import select_ridge

SCRIPT = EXAMPLES / "dgn_training.py"
NAME = "dgn_training_digits"
VARIANTS = 19
S = 2  # S is the number of seeds.

pytest.importorskip("sklearn")
pytest.importorskip("tqdm")


def start(*options: str, out: Path, stopped: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts the script in another folder, with the gatedops that these tests use.

    stopped: the arguments of stopping.py between the script and the options.
    """
    script = [str(STOPPING), str(SCRIPT), *stopped] if stopped else [str(SCRIPT)]
    return subprocess.Popen(
        [sys.executable, *script, "--seeds", str(S), "--out", str(out), *options],
        cwd=out.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=200)
    return process.returncode, stdout, stderr


@pytest.fixture
def parts(example_module: Importer) -> Iterator[None]:
    """Makes the script's modules importable, as they are for the script, and uses one thread, as it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def part(name: str) -> ModuleType:
    return importlib.import_module(f"_dgn_training.{name}")


def small_setup(**changed: Any) -> Any:
    options = {"data": "digits", "arch": "fc", "optimizer": "adam", "epochs": 3, "seeds": S, "npk_points": 20}
    return part("setup").Setup(**(options | {"threads": 1, "device": "cpu"} | changed))


def store_of(folder: Path, setup: Any) -> Any:
    return importlib.import_module("_common.store").Store(folder, asdict(setup))


def small_task(shape: tuple[int, ...], n: int = 70) -> Any:
    """Random float64 inputs of 3 classes; n is not a multiple of the batch."""
    generator = torch.Generator().manual_seed(5)
    x, test_x = (torch.rand(rows, *shape, generator=generator, dtype=torch.float64) for rows in (n, 31))
    labels, test_labels = (torch.randint(0, 3, (rows,), generator=generator) for rows in (n, 31))
    return part("setup").Task(x, labels, test_x, test_labels, 3)


def test_a_whole_run_writes_table_json_and_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    code, stdout, stderr = finished(start("--epochs", "2", "--npk-points", "60", out=out))
    assert (code, stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [f"{NAME}.checkpoints", f"{NAME}.json", f"{NAME}.png"]
    assert (out / f"{NAME}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    found = json.loads((out / f"{NAME}.json").read_text())
    assert found["machine"]["gatedops"] == gatedops.__version__
    assert found["points"] == {"train": 1438, "test": 359, "npk": 60}
    assert len(found["table"]) == len(found["runs"]) == len(found["seconds"]) == VARIANTS
    for row in found["table"]:
        history, npk = found["runs"][row["name"]]["history"], found["runs"][row["name"]]["npk"]
        assert [len(of_seeds) for of_seeds in history["loss"]] == [S, S]
        best = [100 * max(of_seed) for of_seed in zip(*history["accuracy"], strict=True)]
        assert row["best"]["mean"] == pytest.approx(sum(best) / S)
        assert row["last"]["mean"] == pytest.approx(50 * sum(history["accuracy"][-1]))
        assert (npk is not None) == row["name"].startswith("f")
        assert npk is None or 0.5 < min(npk["accuracy"]) <= 1
        assert row["title"] in stdout
    for words in ("maximum over epochs", "last epoch", "NPK regression", "after 0, 0, 0, 0, 1, 1, 2 epochs", "wrote"):
        assert words in stdout


@pytest.mark.slow
def test_stopped_and_killed_runs_go_on_to_the_same_figures(tmp_path: Path) -> None:
    """An epoch has 45 steps. Each stop loses what follows the last checkpoint, and nothing else."""
    options = ("--epochs", "3", "--npk-points", "60", "--variants", "relu", "fr-ii", "fl", "--no-plot")
    options += ("--checkpoint-every", "0")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    undisturbed = start(*options, out=whole)
    stops = {
        # This step lies in the third epoch.
        ("SIGINT", "step", 100): {"relu": 2},
        # The second epoch is done, and its checkpoint is half written.
        ("SIGKILL", "save", 3): {"relu": 3, "fr-ii": 1},
    }
    for (stop, *place), epochs in stops.items():
        code, stdout, stderr = finished(start(*options, out=stopped, stopped=(stop, *map(str, place))))
        assert stdout == ""
        assert code == (130 if stop == "SIGINT" else -signal.SIGKILL)
        if stop == "SIGINT":
            assert len(stderr.splitlines()) == 1
            assert "the same command goes on from the checkpoints in" in stderr
        assert epochs_kept(stopped) == epochs
        assert not (stopped / f"{NAME}.json").exists()
    assert finished(start(*options, out=stopped))[::2] == (0, "")
    assert finished(undisturbed)[0] == 0
    figures = [json.loads((out / f"{NAME}.json").read_text()) for out in (whole, stopped)]
    for found in figures:
        del found["machine"], found["seconds"]
    assert figures[0] == figures[1]


def epochs_kept(out: Path) -> dict[str, int]:
    """Returns the epochs in each variant's checkpoint. The names of half-written checkpoints begin with a dot."""
    files = (out / f"{NAME}.checkpoints").glob("[!.]*.pt")
    return {file.stem: len(torch.load(file)["training"]["loss"]) for file in files}


FC, CONV = fc_spec(6, (9, 9, 9), 3), conv_spec((2, 4, 3), (4, 4, 5), (6, 6), 3, "gap")
FLAT = conv_spec((1, 3, 3), (2, 2), (5,), 3, "flatten", padding_mode="circular")
TRAININGS = [
    (spec, name)
    for spec, names in (
        (
            FC,
            (
                "relu",
                "fr-ii",
                "fr-di",
                "dl",
                "fl",
                "dlgn",
                "dlgn-sf",
                "dlgn-ones",
                "dl-permuted",
                "fl-ones",
                "fl-permuted",
            ),
        ),
        (CONV, ("relu", "fr-ii", "dl", "dlgn-sf", "dl-permuted", "fl-ones")),
        (FLAT, ("relu", "fl", "dl-ones")),
    )
    for name in names
]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("spec", "name"), TRAININGS, ids=lambda value: value if isinstance(value, str) else value.shape
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_seeds_trained_as_one_network_are_those_trained_alone(spec: Any, name: str, optimizer: str) -> None:
    variants, training = part("variants"), part("training")
    variant, task, setup = variants.VARIANTS[name], small_task(spec.shape), small_setup(optimizer=optimizer)
    nets = [net.double() for net in variants.relu_nets(spec, S)]
    features = [net.state_dict() for net in nets] if variant.mode == "FL" else None
    models = nets
    if variant.mode != "ReLU":
        models = [model.double() for model in variants.deep_gated_nets(variant, spec, S, features)]
    together = trained_together(variant, task, setup, models, nets[0])
    losses = [trained_alone(model, task, setup, seed) for seed, model in enumerate(models)]
    expected = torch.tensor(losses, dtype=torch.float64).T
    assert_close_in_float64(torch.tensor(together.history.loss, dtype=torch.float64), expected)
    assert (expected[-1] != expected[0]).all()
    alone = torch.tensor([[accuracy_of(model, task) for model in models]])
    assert torch.equal(torch.tensor(together.history.accuracy[-1:]), alone)
    assert training.data_order(70, S, 0)[0].tolist() != training.data_order(70, S, 0)[1].tolist()


def trained_together(variant: Any, task: Any, setup: Any, models: list[nn.Module], chain: nn.Sequential) -> Any:
    run, stacked, training = part("run"), part("stacked"), part("training")
    if variant.mode == "ReLU":
        whole = training.Training(stacked.StackedReLU(models), task, setup)
    else:
        gates = run.frozen_gates(models, task) if variant.hard else None
        whole = training.Training(stacked.StackedDGN(models, chain), task, setup, gates)
    for _ in range(setup.epochs):
        whole.run_epoch()
    return whole


def trained_alone(model: nn.Module, task: Any, setup: Any, seed: int) -> list[float]:
    """Trains one seed in the plain way, and returns the loss of each epoch."""
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        torch.optim.Adam(learned, setup.learning_rate, eps=1e-7)  # Keras has this default.
        if setup.optimizer == "adam"
        else torch.optim.SGD(learned, setup.learning_rate)
    )
    losses = []
    for epoch in range(setup.epochs):
        total = 0.0
        for rows in part("training").data_order(len(task.x), S, epoch)[seed].split(32):
            loss = F.cross_entropy(model(task.x[rows]), task.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(task.x))
    return losses


@torch.no_grad()
def accuracy_of(model: nn.Module, task: Any) -> float:
    return float((model(task.test_x).argmax(1) == task.test_labels).double().mean())


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("spec", [FC, CONV])
def test_what_is_kept_of_a_training_is_what_the_networks_were(spec: Any) -> None:
    training, stacked, variants = part("training"), part("stacked"), part("variants")
    setup = small_setup(optimizer="sgd", arch="gconv", epochs=4)  # This set-up has a large learning rate.
    task, nets = small_task(spec.shape), [net.double() for net in variants.relu_nets(spec, S)]
    whole = training.Training(stacked.StackedReLU(nets), task, setup, keep=(0, 2))
    seen = [parameters_of(whole, nets)]
    for _ in range(setup.epochs):
        whole.run_epoch()
        seen.append(parameters_of(whole, nets))
    assert sorted(whole.kept) == [training.BEST, 0, 2]
    best = whole.history.best_epochs()
    for stage, epochs in ((0, [0] * S), (2, [2] * S), (training.BEST, best)):
        whole.net.load_state_dict(whole.kept[stage])
        for seed, epoch in enumerate(epochs):
            assert torch.equal(parameters_of(whole, nets)[seed], seen[epoch][seed])
    of_seed = [list(accuracy) for accuracy in zip(*whole.history.accuracy, strict=True)]
    assert [accuracy[epoch - 1] for accuracy, epoch in zip(of_seed, best, strict=True)] == [max(a) for a in of_seed]


def parameters_of(whole: Any, nets: list[nn.Sequential]) -> list[Tensor]:
    """Returns the parameters of each seed, read by way of ordinary networks."""
    whole.net.value.copy_to(nets)
    return [nn.utils.parameters_to_vector(net.parameters()).detach().clone() for net in nets]


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("arch", ["fc", "gconv"])
def test_learned_gates_are_those_of_the_stage(arch: str, tmp_path: Path) -> None:
    run, variants, setup = part("run"), part("variants"), small_setup(arch=arch, epochs=2, npk_points=None)
    task = small_task((6,) if arch == "fc" else (1, 4, 4), n=40)
    task = replace(task, x=task.x.float(), test_x=task.test_x.float())
    whole = run.Run(setup, task, store_of(tmp_path, setup), checkpoint_every=0.0)
    results = whole.results(variants.expanded(["fl", "fl-0"]))
    assert list(results) == ["relu", "fl", "fl-0"]
    assert [result.npk is None for result in results.values()] == [True, arch != "fc", arch != "fc"]
    initial = variants.relu_nets(part("setup").spec_of(arch, task), S)
    for net, state in zip(initial, whole.learned_features(0), strict=True):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    stages = [whole.learned_features(stage) for stage in (None, 6)]
    for seed, best in enumerate(results["relu"].history.best_epochs()):
        same = all(torch.equal(stages[0][seed][key], stages[1][seed][key]) for key in stages[0][seed])
        assert same == (best == setup.epochs)
    assert whole.results(variants.expanded(["fl", "fl-0"])) == results


@pytest.mark.usefixtures("parts")
def test_a_training_that_diverges_is_an_error(tmp_path: Path) -> None:
    run, setup, task = part("run"), small_setup(), small_task((6,), n=40)
    task = replace(task, x=task.x.float() * float("nan"), test_x=task.test_x.float())
    whole = run.Run(setup, task, store_of(tmp_path, setup), checkpoint_every=0.0)
    with pytest.raises(ValueError, match=r"ReLU diverged in epoch 1: losses \[nan, nan\]; leave it out of --variants"):
        whole.results(part("variants").expanded(["relu"]))
    assert not (tmp_path / "relu.pt").exists()


@pytest.mark.usefixtures("parts")
def test_small_ridges_are_for_few_points() -> None:
    npk = part("npk")
    few, many = npk.ridges_of(npk.CHOOSING), npk.ridges_of(npk.CHOOSING + 1)
    assert set(many) < set(few)
    assert min(many) == 0.1


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("ones", [False, True])
def test_regression_uses_the_gates_of_its_seed(ones: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npk, training, setup = part("npk"), part("training"), small_setup(npk_points=40)
    task, generator = small_task((6,)), torch.Generator().manual_seed(1)

    def gates(rows: int) -> GateBits:
        return GateBits.pack([torch.rand(rows, w, generator=generator) > 0.5 for w in (33, 8)])

    train, test = [gates(70) for _ in range(S)], [gates(31) for _ in range(S)]
    frozen, store = training.FrozenGates(GateBits.cat(train), GateBits.cat(test)), store_of(tmp_path, setup)
    found = npk.regress(task, frozen, setup, ones, store, "fl")
    rows = torch.randperm(70, generator=torch.Generator().manual_seed(0))[:40]
    for seed in range(S):
        x, test_x = (None, None) if ones else (task.x[rows], task.test_x)
        gram = reference.npk_gram(x, train[seed][rows], dtype=torch.float64)
        cross = reference.npk_gram(test_x, test[seed], x, train[seed][rows], dtype=torch.float64)
        assert found.ridge[seed] == select_ridge(gram, task.labels[rows], npk.ridges_of(40))
        fitted = regression.fit(gram, regression.one_hot(task.labels[rows], 3), found.ridge[seed])
        assert found.accuracy[seed] == regression.accuracy(fitted.predict(cross), task.test_labels)
    # Each seed is stored, and is not computed again.
    monkeypatch.setattr(npk, "kernel_ridge", None)
    assert npk.regress(task, frozen, setup, ones, store, "fl") == found


@pytest.mark.usefixtures("parts")
def test_checkpoints_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, cpu = small_setup(), torch.device("cpu")
    store = store_of(tmp_path / "c", setup)
    assert store.load_state("dl", cpu) is None
    assert store.load_figures("dl") is None
    store.save_state("dl", {"epoch": 1, "w": torch.arange(3.0)})
    whole = torch.save

    def interrupted(state: object, path: Path) -> None:
        whole(state, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save_state("dl", {"epoch": 2, "w": torch.zeros(3)})
    (tmp_path / "c" / ".dl.1.pt").write_bytes(b"half")  # A killed process leaves its temporary file.
    state = store_of(tmp_path / "c", setup).load_state("dl", cpu)
    assert state is not None
    assert (state["epoch"], state["w"].tolist()) == (1, [0.0, 1.0, 2.0])
    for file in ("dl.pt", "dl.json"):
        (tmp_path / "c" / file).write_bytes(b"PK\x03\x04 not a checkpoint")
    for load in (lambda: store.load_state("dl", cpu), lambda: store.load_figures("dl")):
        with pytest.raises(ValueError, match=r"dl\.(pt|json) is damaged: remove it"):
            load()


@pytest.mark.usefixtures("parts")
def test_checkpoints_of_other_options_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path, small_setup())
    store_of(tmp_path, small_setup())
    message = r"checkpoints of other options \(optimizer 'adam' there, 'sgd' here; epochs 3 there, 4 here\): use those"
    with pytest.raises(ValueError, match=message):
        store_of(tmp_path, small_setup(epochs=4, optimizer="sgd"))


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "iris"], "argument --data: invalid choice"),
        (["--data", "mnist"], "data_dir is needed for mnist"),
        (["--data", "mnist", "--data-dir", "nowhere"], "train-images-idx3-ubyte"),
        (["--data", "mnist", "--quick"], "--quick is a run on digits; got --data mnist"),
        (["--arch", "resnet"], "argument --arch: invalid choice"),
        (["--optimizer", "lion"], "argument --optimizer: invalid choice"),
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--seeds", "none"], "argument --seeds: needs a whole number, got 'none'"),
        (["--variants", "relu", "fl-7"], "argument --variants: invalid choice: 'fl-7'"),
        (["--npk-points", "9"], "argument --npk-points: must be at least 10, got 9"),
        (["--device", "cuda"], "--device cuda needs an NVIDIA GPU"),
        (["--device", "tpu"], "argument --device: invalid choice"),
        (["--out", __file__], "is not a folder that can be written to"),
    ],
)
def test_bad_options(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script = importlib.import_module("dgn_training")
    assert status_of(script, ["--out", str(tmp_path), *options], monkeypatch) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dgn_training.py: error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("parts")
def test_defaults_are_the_papers() -> None:
    script = importlib.import_module("dgn_training")

    def setup(*options: str) -> Any:
        return script.setup_of(script.parser().parse_args(options))

    mnist = setup("--data", "mnist")
    assert (mnist.epochs, mnist.seeds, mnist.learning_rate, mnist.arch) == (100, 5, 1e-4, "fc")
    assert setup("--data", "mnist", "--optimizer", "sgd").epochs == 300
    gconv = setup("--data", "cifar10", "--arch", "gconv", "--optimizer", "sgd")
    assert (gconv.epochs, gconv.learning_rate) == (100, 0.1)
    assert mnist.npk_points is None
    assert setup("--data", "mnist", "--epochs", "6").stages == (0, 0, 1, 2, 3, 4, 6)
    assert setup("--quick").epochs < setup().epochs < 100
    assert setup("--quick", "--epochs", "50").epochs == 50


@pytest.mark.usefixtures("parts")
def test_variants_bring_what_they_need() -> None:
    variants = part("variants")
    assert [variant.name for variant in variants.expanded(["fl-3", "dl"])] == ["relu", "dl", "fl-3"]
    assert [variant.name for variant in variants.expanded(["dlgn", "fr-ii"])] == ["fr-ii", "dlgn"]
    assert len(variants.expanded(["all", "relu"])) == VARIANTS
    assert variants.permuted_order(fc_spec(4, (7, 7, 7, 5), 2)) == [1, 2, 0, 3]
    assert variants.permuted_order(conv_spec()) == [1, 0, 3, 2, 5, 4]


@pytest.mark.usefixtures("parts")
def test_the_table_says_how_far_ours_is_from_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    report, run, training, variants = part("report"), part("run"), part("training"), part("variants")
    setup = small_setup(data="mnist", epochs=10)
    rising = [[0.9 + 0.001 * epoch, 0.902 + 0.001 * epoch] for epoch in range(10)]
    close = [[0.9809, 0.9819]] * 10
    npk = part("npk").Regressed([0.97, 0.98], [1e-3, 1e-2], [7, 8])
    results = {
        "fr-ii": run.Result(training.History(rising, rising), npk, 1.0),
        "relu": run.Result(training.History(close, close), None, 1.0),
        "dlgn": run.Result(training.History(close, close), None, 1.0),
    }
    wanted = variants.expanded(list(results))
    rows = {row.name: row for row in report.rows_of(setup, wanted, results)}
    far = rows["fr-ii"]
    assert far.best.mean == far.last.mean == pytest.approx(91.0)
    assert far.best.std == pytest.approx(0.1 * 2**0.5)
    assert far.deviation == pytest.approx((91.0 - 96.02) / (0.13**2 + 0.1**2 * 2) ** 0.5)
    assert far.second_half == pytest.approx(0.5)
    assert str(far.npk) == "97.50 +- 0.71"
    assert rows["relu"].deviation == pytest.approx(0, abs=1e-9)
    assert rows["dlgn"].published is None
    notes = report.notes(setup, list(rows.values()))
    assert len(notes) == 1
    assert notes[0].startswith(
        "FRNPF (II) differs from the published figure by -5.02 points, 26.1 standard deviations; we trained 10 epochs"
    )
    assert "the papers 100, and the second half of ours added 0.50 points" in notes[0]
    report.print_report(
        setup, small_task((6,)), list(rows.values()), {"cpu": "", "threads": 1, "instruction_set": "", "torch": ""}
    )
    printed = capsys.readouterr().out
    assert "96.02 +- 0.13        91.00 +- 0.14  -5.02 (26.1 std)  91.00 +- 0.14   97.50 +- 0.71" in printed
    assert report.Figure.of([0.5]) == report.Figure(50.0, None)


@pytest.mark.usefixtures("parts")
def test_published_figures_are_those_of_the_set_up() -> None:
    papers = part("papers")
    assert str(papers.published("gconv", "sgd", "cifar10")["fl"]) == "Published(mean=78.52, std=0.39)"
    assert papers.published("gconv", "adam", "cifar10")["fl-6"].mean == 79.43
    assert "fl-6" not in papers.published("fc", "adam", "mnist")
    assert papers.published("fc", "adam", "digits") == {}
    for (arch, optimizer, _), figures in papers.TABLE.items():
        assert (arch, optimizer) in papers.EPOCHS
        assert set(figures) == set(part("variants").PAPERS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("name", ["relu", "dl"])
def test_a_cuda_graph_trains_as_the_steps_it_records(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training, stacked, variants = part("training"), part("stacked"), part("variants")
    task, setup = small_task((6,)), small_setup(device="cuda")
    task = replace(task, **{name: value.cuda() for name, value in vars(task).items() if isinstance(value, Tensor)})
    histories = []
    for graph in (True, False):
        nets = [net.double() for net in variants.relu_nets(FC, S)]
        models = nets if name == "relu" else variants.deep_gated_nets(variants.VARIANTS[name], FC, S, None)
        net = stacked.StackedReLU(nets) if name == "relu" else stacked.StackedDGN([m.double() for m in models], nets[0])
        whole = training.Training(net.cuda(), task, setup)
        if not graph:
            monkeypatch.setattr(whole, "_step", whole.step)
        for _ in range(setup.epochs):
            whole.run_epoch()
        histories.append(torch.tensor(whole.history.loss, dtype=torch.float64))
    assert_close_in_float64(histories[0], histories[1])
