"""A model without the wrappers around its parts, for the length of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from gatedops.trace.state import preserved
from gatedops.trace.wrappers import inside, unwrapped


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """The model inside its wrappers (torch.compile, data parallelism), with those around its parts taken off as long as
    this is entered, so that its modules have the names that they have without wrappers. Afterwards the model is as
    :func:`gatedops.trace.state.preserved` leaves it: as it was, wrappers included."""
    model = unwrapped(model)
    with preserved(model):
        for module in list(model.modules()):
            for name, child in module._modules.items():
                if child is not None and inside(child) is not None:
                    module._modules[name] = unwrapped(child)
        yield model
