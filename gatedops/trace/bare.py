"""Takes the wrappers around a model and its parts off, for the length of a call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parameter import UninitializedParameter

from gatedops.trace.state import preserved
from gatedops.trace.wrappers import COMPILED, inside, unwrapped


@contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Gives the model inside its wrappers (torch.compile, data parallelism). While entered, the wrappers around its
    parts are off too, so that its modules have the names that they have without wrappers. Afterwards the model is as it
    was, wrappers included (:func:`gatedops.trace.state.preserved`).

    Raises:
        ValueError: a lazy layer has no weights yet.
    """
    model = unwrapped(model)
    for path, module in model.named_modules():
        if any(isinstance(parameter, UninitializedParameter) for parameter in module._parameters.values()):
            raise ValueError(f"model: {path} ({type(module).__name__}) has no weights yet; call model(x) once")
    with _contents_kept(model), preserved(model):
        for module in list(model.modules()):
            for name, child in module._modules.items():
                if child is not None and inside(child) is not None:
                    part = module._modules[name] = unwrapped(child)
                    # A forward may reach through the wrapper by these attributes.
                    for attribute in ("module", COMPILED):
                        if not hasattr(part, attribute):
                            vars(part)[attribute] = part
        yield model


@contextmanager
def _contents_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards gives the lists and dictionaries that modules hold their earlier contents."""
    held = [value for module in model.modules() for name, value in vars(module).items() if name[0] != "_"]
    lists = [(value, list(value)) for value in held if type(value) is list]
    dictionaries = [(value, dict(value)) for value in held if type(value) is dict]
    try:
        yield
    finally:
        for kept, entries in lists:
            kept[:] = entries
        for table, pairs in dictionaries:
            table.clear()
            table.update(pairs)
