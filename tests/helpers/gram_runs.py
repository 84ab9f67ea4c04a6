"""Runs sections of benchmarks/gram.py in this process, on the CPU, or with the CPU as stand-in for a GPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


def part(name: str) -> ModuleType:
    """Returns a module of benchmarks/; the fixture benchmark_module has to be alive."""
    return importlib.import_module(name)


def cell(*sizes: int) -> Any:
    return part("_common.problems").Cell(*sizes)


class StandIn:
    """The CPU in the place of a GPU, whose kernels are the CPU's."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, kernels: tuple[str, ...] = ("wgmma", "mma.sync")):
        self.gpu, self.patch, self.folder = part("_gram.gpu"), patch.setattr, folder
        self.patch(self.gpu.Gpu, "device", "cpu")
        self.patch(self.gpu.Gpu, "memory", lambda _: float(1 << 40))
        if kernels:
            self.patch(self.gpu, "kernels_here", lambda: list(kernels))
        self.patch(torch.cuda, "get_device_name", lambda: "NVIDIA H200" if kernels else "NVIDIA A100")

    def run(self, *sections: str, n: tuple[int, ...] = (64,), options: tuple[str, ...] = ()) -> int:
        script = part("gram")
        given = ["--device", "cuda", "--quick", "--layers", "2", "--width", "64", "--n", *map(str, n), "--no-plot"]
        given += [*options, "--only", *sections, "--out", str(self.folder)]
        return script.run(script.parser().parse_args(given))

    @property
    def found(self) -> dict[str, Any]:
        return json.loads((self.folder / "gram_cuda.json").read_text())

    def timed(self, section: str) -> list[tuple[int, str, str]]:
        return [(e.get("n"), e["what"], e["by"]) for e in self.found["sections"][section]]

    def failed(self) -> list[tuple[str, str, str]]:
        return [(failure["problem"], failure["what"], failure["by"]) for failure in self.found["failures"]]
