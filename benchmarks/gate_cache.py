"""Frozen gates computed once: epochs of training a value network with a GateCache and without.

The networks are the papers' fully connected one on inputs of 784 numbers and GCONV on 3 x 32 x 32 images, in mode "FL"
with Adam, batch 32 and random data. An epoch reads the cache in memory, reads it memory-mapped, or runs the feature
network; the losses must agree in every bit before a time is given. The limit is an epoch that finds the gates of each
batch ready. Ratios compare with the cache in memory. Writes OUT/gate_cache.json.

    python benchmarks/gate_cache.py
    python benchmarks/gate_cache.py --networks fc --n 60000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from _common.contest import Call, Contest, Entry, Failures
from _common.options import at_least, run_script, script_parser
from _common.output import Results
from torch import Tensor, nn

from gatedops import DGN, GateBits, GateCache
from gatedops.nn import conv_spec, fc_spec
from gatedops.nn.dgn_spec import Spec

BATCH, LEARNING_RATE, REPEATS = 32, 1e-4, 7
SPECS: dict[str, Spec] = {"fc": fc_spec(), "gconv": conv_spec(head="gap")}
INPUTS = {"fc": 3200, "gconv": 64}
LIMIT = "gates that are ready"


def time_epochs(network: str, args: argparse.Namespace, failures: Failures, folder: Path) -> list[Entry]:
    n, spec, generator = args.n or INPUTS[network], SPECS[network], torch.Generator().manual_seed(args.seed)
    model = DGN(spec, "FL", feature=spec.relu_net(args.seed), generator=generator)
    x = torch.rand(n, *spec.shape, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    batches = torch.randperm(n, generator=generator).split(BATCH)
    cache = GateCache.build(model, x, BATCH)
    GateCache.build(model, x, BATCH, folder / network)
    mapped = GateCache.load(folder / network)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def epoch(gates: GateCache | Sequence[GateBits | None]) -> Callable[[], Tensor]:
        """Returns a call that trains for one epoch, from the same start each time, with these gates of the batches."""

        def run() -> Tensor:
            model.load_state_dict(start)
            of_batches = (gates[rows] for rows in batches) if isinstance(gates, GateCache) else gates
            return train_epoch(model, x, labels, batches, of_batches)

        return run

    no_cache = [None] * len(batches)
    check = partial(require_same_losses, epoch(no_cache)())
    facts = {"network": network, "n": n, "bytes_an_input": cache.bits.nbytes // n}
    contest = Contest(f"{network}, {n} inputs", failures)
    kinds: dict[str, GateCache | Sequence[GateBits | None]] = {
        "cache in memory": cache,
        "cache, memory-mapped": mapped,
        "no cache": no_cache,
        LIMIT: [cache[rows] for rows in batches],
    }
    for by, gates in kinds.items():
        contest.enter("an epoch", by, partial(epoch, gates), check=check, facts=facts)
    return contest.run(args.repeats, least=3, seconds=20, base=("an epoch", "cache in memory"), limits=(LIMIT,))


def train_epoch(
    model: DGN, x: Tensor, labels: Tensor, batches: Sequence[Tensor], gates: Iterable[GateBits | None]
) -> Tensor:
    """Trains on all batches and returns the loss of each step; the feature network runs for gates that are None."""
    optimizer = torch.optim.Adam(model.value_parameters(), LEARNING_RATE, fused=True)
    losses = []
    for rows, of_rows in zip(batches, gates, strict=True):
        loss = nn.functional.cross_entropy(model(x[rows], gates=of_rows), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def require_same_losses(expected: Tensor, epoch: Call) -> None:
    """Raises RuntimeError if an epoch's losses differ in any bit from those without a cache."""
    losses = epoch()
    if not torch.equal(losses, expected):
        raise RuntimeError(f"losses differ by {float((losses - expected).abs().max()):.3g}")


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    add = options.add_argument
    add("--networks", choices=SPECS, nargs="+", default=list(SPECS), metavar="NAME", help=", ".join(SPECS))
    add("--n", type=at_least(1), help=f"inputs (default: fc {INPUTS['fc']}, gconv {INPUTS['gconv']})")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed epochs of each, at most (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> int:
    results = Results(args, "gate_cache", family="gates")
    with tempfile.TemporaryDirectory() as folder, results.section(f"one epoch, batch {BATCH}"):
        parts = [(one, partial(time_epochs, one, args, results.failures, Path(folder))) for one in args.networks]
        results.time_parts("entries", parts, ("bytes_an_input",))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
