"""What gates do, counted on bits, for a million inputs: gate_stats, gate_change, count_regions, naswot_score.

Random gates of the papers' network, 5 x 128 unless --widths says otherwise: 160 bytes an input. The limit of each is
to read its bits once: the time of their sum. Writes OUT/gate_statistics.json.

    python benchmarks/gate_statistics.py
    python benchmarks/gate_statistics.py --n 100000 --widths 1024 1024
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _common.contention import Contention, sentence
from _common.machine import machine_report
from _common.options import DEFAULT_OUT, at_least, require_folder, require_memory
from _common.output import print_table, write_json_atomically
from _common.timing import interleaved_medians, readable_seconds

from gatedops import GateBits, count_regions, gate_stats, naswot_score
from gatedops.stats import gate_change

CHUNK = 50_000  # inputs whose gates are drawn at a time
NASWOT_BATCH = 128  # the paper's
REPEATS = 5


def random_bits(n: int, widths: list[int], seed: int) -> GateBits:
    """Every gate on with probability 1/2."""
    generator = torch.Generator().manual_seed(seed)

    def chunk(rows: int) -> GateBits:
        return GateBits.pack([torch.rand(rows, width, generator=generator) > 0.5 for width in widths])

    return GateBits.cat([chunk(min(CHUNK, n - first)) for first in range(0, n, CHUNK)])


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--n", type=at_least(NASWOT_BATCH), default=1_000_000, help="inputs (default: %(default)s)")
    add("--widths", type=at_least(1), nargs="+", default=[128] * 5, help="gates of each layer (default: 5 x 128)")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed runs of each, at most (default: %(default)s)")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of the gates (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> None:
    row_bytes = sum(-(-width // 256) * 32 for width in args.widths)
    require_memory(4 * args.n * row_bytes + CHUNK * 5 * sum(args.widths), "gates, a second checkpoint and their parts")
    require_folder(args.out)
    report, contention = machine_report(), Contention()
    bits, later = (random_bits(args.n, args.widths, seed) for seed in (args.seed, args.seed + 1))
    functions: dict[str, Callable[[], object]] = {
        "gate_stats": lambda: gate_stats(bits),
        "gate_change": lambda: gate_change(bits, later),
        "count_regions": lambda: count_regions(bits),
        f"naswot_score, batches of {NASWOT_BATCH}": lambda: naswot_score(bits, batch_size=NASWOT_BATCH),
        "their sum: the words read once": lambda: bits.words.sum(),
    }
    timings = interleaved_medians(functions, args.repeats, least=1, seconds=15)
    busy = contention.cores()
    print(f"{report['cpu']}, {report['threads']} threads, {report['instruction_set']}, torch {report['torch']}")
    print(
        f"\n{args.n} inputs, {sum(args.widths)} gates in {len(args.widths)} layers, {bits.nbytes / 1e6:.0f} MB of bits"
    )
    rows = [[name, readable_seconds(timing.median), str(len(timing.samples))] for name, timing in timings.items()]
    print_table(["", "median", "runs"], rows)
    regions = count_regions(bits)
    print(f"{regions.net} regions of the net, {', '.join(map(str, regions.layers))} of its layers")
    print(sentence(busy))
    figures = {
        "machine": report,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "other_cores_busy": busy,
        "bytes": bits.nbytes,
        "unit": "s",
        "median": {name: timing.median for name, timing in timings.items()},
        "regions": {"net": regions.net, "layers": list(regions.layers)},
    }
    write_json_atomically(args.out / "gate_statistics.json", figures)
    print(f"\nwrote {args.out / 'gate_statistics.json'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run(args)
    except ValueError as error:
        print(f"gate_statistics.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
