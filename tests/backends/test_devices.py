"""Tests what gatedops knows of torch's devices; shadow_functions.py tests it on a device without float64."""

from __future__ import annotations

import pytest
import torch

from gatedops import DGN, devices, pack_gates
from gatedops.nn import fc_spec
from gatedops.ops.checks import require_float64, require_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:3", "meta"])
def test_float64_of_these_is_known_without_asking_the_device(name, monkeypatch):
    monkeypatch.setattr(devices, "_computes", None)
    device = torch.device(name)
    assert devices.has_float64(device)
    assert devices.most_precise(device) == torch.float64
    require_float64(device, "x")
    require_precision(torch.float64, device, "dtype")


def test_a_device_that_cannot_compute_in_float64_has_none(monkeypatch):
    monkeypatch.setattr(devices, "_computes", lambda dtype, device: dtype != torch.float64)
    device = torch.device("xpu")
    assert devices.most_precise(device) == torch.float32
    require_precision(torch.float32, device, "dtype")
    with pytest.raises(TypeError, match=r"dtype: got torch\.float64, which xpu does not have: use torch\.float32"):
        require_precision(torch.float64, device, "dtype")
    with pytest.raises(ValueError, match=r"x: is on xpu, which has no float64, .*: move it with \.to\('cpu'\)"):
        require_float64(device, "x")


def test_the_cpu_is_asked_what_it_computes():
    assert devices._computes(torch.float64, CPU)
    assert not devices._computes(torch.bits8, CPU)
    with torch._subclasses.FakeTensorMode():
        assert not devices._computes.__wrapped__(torch.bits8, CPU)


def test_numbers_in_float64():
    x = torch.tensor([0, 2**53, 5])
    assert torch.equal(devices.in_float64(x), torch.tensor([0.0, 2.0**53, 5.0], dtype=torch.float64))


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA GPU")
def test_cuda_without_a_gpu_is_refused_in_one_sentence():
    sentence = "device: got cuda, but torch sees no CUDA GPU here: use 'cpu'"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        pack_gates(torch.ones(2, 3)).to("cuda")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        DGN(fc_spec(3, [2], 2), device="cuda")
