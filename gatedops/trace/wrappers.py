"""Looks through wrappers that do not change what a model computes: torch.compile, data parallelism."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# Wrappers put these names into the paths of the modules inside them.
COMPILED, SHARDED = "_orig_mod", "_fsdp_wrapped_module"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers of torch.compile, DistributedDataParallel, DataParallel and FullyShardedDataParallel,
    in any order and depth; the model itself if it has no wrapper."""
    inner = inside(model)
    while inner is not None:
        model, inner = inner, inside(inner)
    return model


def inside(module: nn.Module) -> nn.Module | None:
    """The module that a wrapper calls; None if the module is not a wrapper."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return module.module
    if type(module).__name__ == "OptimizedModule" and isinstance(getattr(module, COMPILED, None), nn.Module):
        return _module(getattr(module, COMPILED))
    # If FSDP was never imported, it cannot have wrapped a module.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, fsdp.FullyShardedDataParallel):
        return _module(module.module)
    return None


def plain_path(path: str) -> str:
    """The path of a module without the names that torch.compile and FullyShardedDataParallel put into it."""
    return ".".join(part for part in path.split(".") if part not in (COMPILED, SHARDED))


def _module(found: Any) -> nn.Module | None:
    return found if isinstance(found, nn.Module) else None
