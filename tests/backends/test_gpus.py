"""Tests the kinds of GPU, their driver, and GPUs that torch cannot use. The GPUs are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from made_up_gpus import A100, H100

from gatedops.backends import gpus

# --- the kinds of GPU ---


def test_gpus_of_one_kind_are_one_entry(monkeypatch):
    names = ["NVIDIA H100", "NVIDIA A100", "NVIDIA H100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index != 1 else (8, 0))
    monkeypatch.setattr(gpus, "driver_version", lambda: "580.65.06")
    assert gpus.gpus() == [replace(H100, indices=(0, 2)), A100]
    assert [gpu.device for gpu in gpus.gpus()] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("content", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (a)\nGCC version: 12",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("GCC version: 12.2.0\n", "CUDA 13.0"),
        (None, "CUDA 13.0"),
    ],
)
def test_the_driver_is_named(content, version, monkeypatch, tmp_path):
    path = tmp_path / "version"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(gpus, "_DRIVER_FILE", path)
    monkeypatch.setattr(gpus, "_served_by_driver", lambda: "CUDA 13.0")
    assert gpus.driver_version() == version


def test_a_gpu_that_torch_cannot_use_says_why(monkeypatch):
    assert gpus.why_unusable("cpu") is None
    why = gpus.why_unusable("meta")
    assert why is not None
    assert why.startswith("meta: torch sees it but cannot use it: ")
    monkeypatch.setattr(gpus, "_TRIAL", "import time; time.sleep(9)")
    monkeypatch.setattr(gpus, "_LIMIT", 0.1)
    assert gpus.why_unusable("cpu") == "cpu: torch sees it, but a small product on it did not end within 0.1 s"
