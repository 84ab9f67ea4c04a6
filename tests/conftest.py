"""Sets up what every test runs under: poisoned memory, a hypothesis profile, and instruction sets as a fixture."""

from __future__ import annotations

import functools
import gc
import os
import typing
from collections.abc import Iterator

import pytest
import torch
import torch.export.exported_program as exported_program
from hypothesis import settings
from instruction_sets import ISAS
from script_runs import BENCHMARKS, EXAMPLES, Importer, modules_beside
from selftest_fixtures import quick, untouched_ops  # noqa: F401 (fixtures)
from torch import nn

from gatedops import backends, trace

# With GATEDOPS_BACKEND=portable, the tests of the ops, and of all that uses them, run on the portable ops.
PORTABLE = backends.forced_backend() == "portable"
_OF_OTHER_THINGS = [
    "*/test_*benchmark*.py",
    "*/test_*_example.py",
    "*/test_scripts.py",
    "*/test_cuda_*.py",
    "*/test_gpu_*.py",
    "*/test_triton_*.py",
    "*/test_backends.py",
    "*/test_choice.py",
    "*/test_gpus.py",
    "*/test_record_proved.py",
    "*/test_selftest*.py",
    "*/test_verdict_files.py",
    "*/test_build.py",
    "*/test_cpu_isa.py",
    "*/test_data.py",
    "*/test_layout.py",
    "*/test_output_memory.py",
    "*/test_project_files.py",
    "*/test_shadow.py",
]
collect_ignore_glob = _OF_OTHER_THINGS if PORTABLE else []
# CI runs a share of them, marked `portable`: these files, which take seconds.
_SHARE = ["gates", "packing_layouts", "gate_counts", "gram_autograd", "gram_errors"]
_SHARE += ["gated_linear", "gated_linear_backward", "gated_linear_errors", "gated_linear_pair", "dgn_errors"]

settings.register_profile("local", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the share of CI, and skips what the portable ops do not promise, such as the same bits on any threads."""
    for item in items:
        if item.path.stem.removeprefix("test_") in _SHARE:
            item.add_marker(pytest.mark.portable)
        if PORTABLE and item.get_closest_marker("cpu_kernels"):
            item.add_marker(pytest.mark.skip(reason="a promise of the kernels in C++ alone"))


def pytest_collection_finish() -> None:
    """Keeps what the imports left out of every later search for garbage: with torch, each search takes 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_exports() -> Iterator[None]:
    """Halves the time of a torch.export, of which the tests make hundreds.

    Every export lists the same ops of torch anew, and evaluates the annotations of one function 10,000 times. Those of
    typing.Callable are cached, and nothing reads them.
    """
    name = "_collect_all_valid_cia_ops"
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(exported_program, name):  # Another torch may have no such function.
            patch.setattr(exported_program, name, functools.cache(getattr(exported_program, name)))
        patch.setattr(torch._ops, "Callable", typing.Callable)
        yield


@pytest.fixture(scope="session", autouse=True)
def _fill_uninitialized_memory() -> Iterator[None]:
    """Fills new memory, so that an output element that a kernel forgets is NaN (or the largest integer), and not right
    by luck.

    ATen's own empty(), new_empty() and empty_strided() fill the memory, so this also covers what C++ kernels allocate
    through torch::stable. Replacing torch.empty in Python would miss those. ATen fills memory only in deterministic
    mode. That mode only warns here, so an op without a deterministic version still runs.
    """
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before
    torch.use_deterministic_algorithms(False)


_STEPS: dict[tuple[nn.Module, torch.Size], list[trace.Step]] = {}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Uses one thread, for problems so small that threads would wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports every network once for all tests, because the steps are the same and torch.export takes most of the
    time."""
    steps_of = trace.steps

    def steps(model: nn.Module, x: torch.Tensor, **options: str) -> list[trace.Step]:
        key = (model, x.shape[1:])
        if key not in _STEPS:
            _STEPS[key] = steps_of(model, x, **options)
        return _STEPS[key]

    monkeypatch.setattr(trace, "steps", steps)


@pytest.fixture
def benchmark_module() -> Iterator[Importer]:
    with modules_beside(BENCHMARKS) as importer:
        yield importer


@pytest.fixture
def example_module() -> Iterator[Importer]:
    with modules_beside(EXAMPLES) as importer:
        yield importer


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test once for each instruction set of this machine; with the portable ops it runs once."""
    with backends.force_cpu(request.param):
        yield request.param
