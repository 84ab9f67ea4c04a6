"""Looking for an input that a model takes leaves the model and the process as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gatedops import path_norm


def test_a_search_that_ends_in_an_error_leaves_gradients_on_and_modes_as_they_were():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)).train()
    with pytest.raises(ValueError, match=r"x: is missing, and the model takes inputs of") as raised:
        path_norm(net, 2)
    # A notebook holds the exception, so gradients must be on again while it is held.
    assert torch.is_grad_enabled()
    assert net.training
    net.eval()
    with torch.no_grad():
        del raised
    assert torch.is_grad_enabled()
    assert not net.training
