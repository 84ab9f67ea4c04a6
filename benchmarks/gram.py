"""How fast the Gram is, beside what the machine allows and what others reach.

Sections, each chosen with --only:

    sweep      Lambda over n, L and w: time, rate, share of the limit, portable, torch in float32 and bfloat16
    headline   n=4096, L=4, w=1024: with inputs, matvec, every instruction set, portable, one thread and all
    data-set   n=60,000, L=5, w=128, MNIST's size in the papers' network: a new result, a reused one, matvec
    one-core   one thread, L=4, w=4096, n=8192: the share of the inner loop's bound
    one-layer  counts of 1024 gates against NumKong's dots_symmetric, where it is installed
    packing    pre-activations to bits, against a memcpy of the input
    scaling    the exponents of time in n and in L * w
    soft       real-valued gates against plain torch

The limit of a cell is the larger of two times: of looking at every bit-pair at the rate of the instruction set
(cores x clock x pairs per cycle), and of writing the n x n output at the bandwidth measured here. Gates are
random, half of them on. "portable" is the op made of torch's own operations, called directly, in the same turns as the
kernels in C++. Writes OUT/gram.json and OUT/gram.png.

    python benchmarks/gram.py
    python benchmarks/gram.py --only sweep --n 2048 8192 --layers 1 16 --width 512
    python benchmarks/gram.py --device cuda
    GATEDOPS_BACKEND=cuda python benchmarks/gram.py --device cuda

On a GPU (OUT/gram_cuda.json and .png) the sections are sweep, headline (n=60,000, L=10, w=1024), one-layer (counts,
n=w=32,768) and packing; every kernel there is stands beside torch's products of int8 and float16 gates: portable, and
before it those that GATEDOPS_BACKEND, cuda or triton, adds. The targets are those of an H200. The limit is
the largest of the times of the tensor cores, of the product over layers, of Sigma and of writing the output, at
published rates (_gram/gpu_limits.py). A kernel or peer that is wrong or raises is named with the reason ("failures" in
the JSON) and the rest goes on; the exit status is then 1. The JSON is written after every cell ("complete" is false
until the last), and the run ends where an error leaves the GPU unusable.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _common.contention import Contention, sentence
from _common.machine import bit_pair_bound, machine_report
from _common.options import DEFAULT_OUT, at_least, require_folder, require_matplotlib, require_memory
from _common.output import print_table, write_json_atomically
from _gram import data_set, gpu, headline, numkong, packing, scaling, soft, sweep, targets
from _gram.entry import Entry
from _gram.portable import PORTABLE
from _gram.sizes import Sizes, default_sizes, full_sizes, given_sizes, quick_sizes

from gatedops.backends.choice import backend_of

SECTIONS = ("sweep", "headline", "data-set", "one-core", "one-layer", "packing", "scaling", "soft")
BUFFERS = 5  # n x n arrays of float32 alive at the worst moment


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    size = options.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small sizes, few runs: a minute, rough figures")
    size.add_argument("--full", action="store_true", help="every n, L and w in the sweep: about an hour")
    add("--n", type=at_least(16), nargs="+", metavar="N", help="points; all combinations with L and w are run")
    add("--layers", type=at_least(1), nargs="+", metavar="L", help="gated layers")
    add("--width", type=at_least(1), nargs="+", metavar="W", help="gates per layer")
    add("--only", choices=SECTIONS, nargs="+", metavar="SECTION", help="(default: all) " + ", ".join(SECTIONS))
    add("--no-peers", action="store_true", help="time gatedops alone in sweep and headline, on a CPU without portable")
    add("--no-plot", action="store_true", help="no PNG; matplotlib is not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return options


def chosen_sizes(args: argparse.Namespace) -> Sizes:
    sizes = quick_sizes() if args.quick else full_sizes() if args.full else default_sizes()
    if args.n or args.layers or args.width:
        return given_sizes(sizes, args.n, args.layers, args.width)
    return sizes


def require_cpu_kernels() -> None:
    """ValueError where what is called a kernel in C++ would be portable."""
    if backend_of("cpu", "gram") == PORTABLE:
        raise ValueError("GATEDOPS_BACKEND=portable hides the kernels in C++: unset it, portable is timed beside them")


def entries_json(entries: list[Entry]) -> list[dict[str, object]]:
    return [entry.to_json() for entry in entries]


class Run:
    """The sections, each of which prints its table and adds to the content of the JSON."""

    def __init__(self, args: argparse.Namespace, report: dict[str, object]):
        self.args, self.report, self.sizes = args, report, chosen_sizes(args)
        self.peers, self.seed = not args.no_peers, args.seed
        self.found: dict[str, Any] = {}
        self.targets: list[targets.Target] = []
        self.ours: list[Entry] = []
        self.others: list[Entry] = []

    def sweep(self) -> None:
        cells, budget = self.sizes.sweep, self.sizes.sweep_budget
        entries = sweep.sweep(cells, self.report, budget, peers=self.peers, seed=self.seed)
        print("Lambda into a reused buffer; a dash: what takes too long or too much memory, or is not timed")
        print_table(sweep.HEADER, sweep.sweep_rows(entries))
        self.ours += [entry for entry in entries if entry.by == "gatedops"]
        self.others += [entry for entry in entries if entry.by != "gatedops"]
        self.found["sweep"] = entries_json(entries)

    def headline(self) -> None:
        cell, budget = self.sizes.headline, self.sizes.budget
        entries = headline.headline(cell, self.report, budget, peers=self.peers, seed=self.seed)
        print(f"{cell}, x of {headline.INPUTS} columns; times over Lambda alone on as many threads")
        print_table(headline.HEADER, headline.headline_rows(entries))
        self.targets += targets.headline_targets(entries)
        self.found["headline"] = entries_json(entries)

    def data_set(self) -> None:
        cell = self.sizes.data_set
        if not data_set.fits(cell):
            print(f"left out: {cell} needs {data_set.bytes_of(cell) / 2**30:.1f} GiB of memory, more than is left")
            return
        entries = data_set.data_set(cell, self.report, self.sizes.sweep_budget, self.seed)
        print(f"{cell}: {4 * cell.n**2 / 1e9:.3g} GB")
        print_table(data_set.HEADER, data_set.data_set_rows(entries))
        self.found["data-set"] = entries_json(entries)

    def one_core(self) -> None:
        cell = self.sizes.one_core
        entries = headline.one_core(cell, self.report, self.sizes.budget, self.seed)
        print(f"{cell} on one thread")
        print_table(headline.HEADER, headline.headline_rows(entries))
        self.targets += targets.one_core_targets(entries, headline.popcount_seconds(entries))
        self.found["one-core"] = entries_json(entries)

    def one_layer(self) -> None:
        entries = numkong.one_layer(self.sizes.one_layer, self.report, self.sizes.budget, self.seed)
        version = numkong.numkong_version()
        print(f"{self.sizes.one_layer}; numkong {version or 'is not installed: pip install numkong'}")
        print_table(numkong.HEADER, numkong.layer_rows(entries))
        self.targets += targets.numkong_targets(entries)
        self.others += [entry for entry in entries if entry.what == numkong.UPPER and entry.threads > 1]
        self.found["one-layer"] = {"numkong": version, "entries": entries_json(entries)}

    def packing(self) -> None:
        entries = packing.packing(self.sizes.packing, self.sizes.budget, self.seed)
        print("packing into reused words; memcpy of the same bytes, the faster of C's memcpy and torch's copy_")
        print_table(packing.HEADER, [entry.row() for entry in entries])
        self.targets += targets.packing_targets(entries)
        self.found["packing"] = [asdict(entry) | {"share_of_memcpy": entry.share} for entry in entries]

    def scaling(self) -> None:
        sizes = self.sizes
        found = scaling.scaling(sizes.by_n, sizes.by_bits, self.report, sizes.sweep_budget, self.seed)
        print("growth of the time of Lambda: 2 in n, 1 in the bits per pair")
        print_table(scaling.HEADER, [one.row() for one in found])
        self.found["scaling"] = [one.to_json() for one in found]

    def soft(self) -> None:
        entries = soft.soft_gram(self.sizes.soft, self.sizes.budget, self.seed)
        print(f"real-valued gates, {self.sizes.soft}")
        print_table(soft.HEADER, soft.soft_rows(entries))
        self.found["soft"] = entries_json(entries)


def run(args: argparse.Namespace) -> int:
    """The exit status."""
    if not args.no_plot:
        require_matplotlib()
    require_folder(args.out)
    if args.device == "cuda":
        return gpu.run(args)
    run_on_cpu(args)
    return 0


def run_on_cpu(args: argparse.Namespace) -> None:
    require_cpu_kernels()
    largest = max(cell.n for cell in (*chosen_sizes(args).sweep, chosen_sizes(args).headline))
    require_memory(BUFFERS * 4 * largest**2, f"n={largest}")
    report = machine_report()
    bound = bit_pair_bound(report)
    print(f"{report['cpu']}, {report['threads']} threads, {report['instruction_set']}, torch {report['torch']}")
    print(f"bound of counting: {bound.explanation}")
    done = Run(args, report)
    busy_elsewhere: dict[str, float | None] = {}
    for section in SECTIONS:
        if args.only is None or section in args.only:
            print(f"\n== {section}")
            contention = Contention()
            getattr(done, section.replace("-", "_"))()
            busy_elsewhere[section] = contention.cores()
            print(sentence(busy_elsewhere[section]))
    options = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    content = {
        "machine": report,
        "options": options,
        "bound": asdict(bound),
        "cores_busy_elsewhere": busy_elsewhere,
        **done.found,
    }
    if chosen_sizes(args) == default_sizes() or args.full:
        print("\n== targets")
        print_table(targets.HEADER, [target.row() for target in done.targets])
        content["targets"] = [asdict(target) | {"met": target.met} for target in done.targets]
    write_json_atomically(args.out / "gram.json", content)
    print(f"\nwrote {args.out / 'gram.json'}")
    if done.ours and not args.no_plot:
        from _gram.roofline import plot_roofline

        title = f"Lambda on {report['threads']} threads of {report['cpu']}, {report['instruction_set']}"
        plot_roofline(args.out / "gram.png", done.ours, done.others, title)
        print(f"wrote {args.out / 'gram.png'}")


def main() -> int:
    args = parser().parse_args()
    try:
        return run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"gram.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
