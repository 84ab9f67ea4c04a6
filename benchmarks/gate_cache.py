"""Frozen gates computed once: epochs of training a value network with a GateCache and without.

The papers' fully connected network on inputs of 784 numbers and GCONV on 3 x 32 x 32 images, mode "FL", Adam, batch 32,
random data. In turns: an epoch that runs the feature network, one that reads the cache in memory, one that reads it
memory-mapped; the losses must agree in every bit before a time is given. The feature network's part of an epoch, timed
alone, is what a cache can save at most. Writes OUT/gate_cache.json.

    python benchmarks/gate_cache.py
    python benchmarks/gate_cache.py --networks fc --n 60000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _common.contention import Contention, sentence
from _common.machine import machine_report
from _common.options import DEFAULT_OUT, at_least, require_folder
from _common.output import print_table, write_json_atomically
from _common.timing import interleaved_medians, readable_seconds
from torch import Tensor, nn

from gatedops import DGN, GateCache
from gatedops.nn import conv_spec, fc_spec
from gatedops.nn.dgn_spec import Spec

BATCH, LEARNING_RATE, REPEATS = 32, 1e-4, 7
SPECS: dict[str, Spec] = {"fc": fc_spec(), "gconv": conv_spec(head="gap")}
INPUTS = {"fc": 3200, "gconv": 64}


@dataclass(frozen=True)
class Epoch:
    """Seconds of one epoch on n inputs; features: of the feature network alone. cache_bytes: of the cached gates."""

    network: str
    n: int
    cache_bytes: int
    without: float
    cached: float
    mapped: float
    features: float

    @property
    def limit(self) -> float:
        """How many times as fast an epoch could be at most."""
        return self.without / (self.without - self.features)

    def row(self) -> list[str]:
        times = [readable_seconds(seconds) for seconds in (self.without, self.cached, self.mapped)]
        gains = [f"{self.without / seconds:.2f}x" for seconds in (self.cached, self.mapped)]
        return [self.network, str(self.n), str(self.cache_bytes // self.n), *times, *gains, f"{self.limit:.2f}x"]


HEADER = ["", "inputs", "bytes an input", "without", "cached", "mapped", "faster", "faster, mapped", "limit"]


def time_epochs(network: str, n: int, repeats: int, seed: int, folder: Path) -> Epoch:
    spec, generator = SPECS[network], torch.Generator().manual_seed(seed)
    model = DGN(spec, "FL", feature=spec.relu_net(seed), generator=generator)
    x = torch.rand(n, *spec.shape, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    batches = torch.randperm(n, generator=generator).split(BATCH)
    cache = GateCache.build(model, x, BATCH)
    GateCache.build(model, x, BATCH, folder / network)
    mapped = GateCache.load(folder / network)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def epoch(gates: GateCache | None) -> Tensor:
        model.load_state_dict(start)
        return train_epoch(model, x, labels, batches, gates)

    def features() -> None:
        for rows in batches:
            model.gates(x[rows])

    require_same_losses(network, epoch(None), {"cached": epoch(cache), "memory-mapped": epoch(mapped)})
    kinds: dict[str, Callable[[], object]] = {
        "without": lambda: epoch(None),
        "cached": lambda: epoch(cache),
        "mapped": lambda: epoch(mapped),
        "features": features,
    }
    timings = interleaved_medians(kinds, repeats, least=3, seconds=20, label=network)
    return Epoch(network, n, cache.bits.nbytes, **{name: timing.median for name, timing in timings.items()})


def train_epoch(model: DGN, x: Tensor, labels: Tensor, batches: tuple[Tensor, ...], cache: GateCache | None) -> Tensor:
    """The loss of each step."""
    optimizer = torch.optim.Adam(model.value_parameters(), LEARNING_RATE, fused=True)
    losses = []
    for rows in batches:
        output = model(x[rows]) if cache is None else model(x[rows], gates=cache[rows])
        loss = nn.functional.cross_entropy(output, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def require_same_losses(network: str, expected: Tensor, found: dict[str, Tensor]) -> None:
    for name, losses in found.items():
        if not torch.equal(losses, expected):
            raise RuntimeError(f"{network}, {name}: losses differ by {float((losses - expected).abs().max()):.3g}")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--networks", choices=SPECS, nargs="+", default=list(SPECS), metavar="NAME", help=", ".join(SPECS))
    add("--n", type=at_least(1), help=f"inputs (default: fc {INPUTS['fc']}, gconv {INPUTS['gconv']})")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed epochs of each, at most (default: %(default)s)")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> None:
    require_folder(args.out)
    report, contention = machine_report(), Contention()
    with tempfile.TemporaryDirectory() as folder:
        epochs = [
            time_epochs(network, args.n or INPUTS[network], args.repeats, args.seed, Path(folder))
            for network in args.networks
        ]
    busy = contention.cores()
    print(f"{report['cpu']}, {report['threads']} threads, {report['instruction_set']}, torch {report['torch']}")
    print(f"\nOne epoch, batch {BATCH}; the losses agree in every bit. limit: no feature network at all")
    print_table(HEADER, [epoch.row() for epoch in epochs])
    print(sentence(busy))
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    figures = [asdict(epoch) | {"limit": epoch.limit} for epoch in epochs]
    content = {"machine": report, "options": options, "other_cores_busy": busy, "unit": "s", "epochs": figures}
    write_json_atomically(args.out / "gate_cache.json", content)
    print(f"\nwrote {args.out / 'gate_cache.json'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run(args)
    except ValueError as error:
        print(f"gate_cache.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
