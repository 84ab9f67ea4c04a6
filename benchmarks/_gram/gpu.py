"""A run of the Gram benchmark on a GPU."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from _common.machine import machine_report
from _common.options import require_device
from _common.output import print_table, write_json_atomically

from _gram import gpu_sections as sections
from _gram import gpu_targets, packing, targets
from _gram.entry import Entry
from _gram.gpu_limits import rates_of
from _gram.gpu_peers import kernels_here, packing_kernel
from _gram.gpu_sizes import GpuSizes, default_sizes, full_sizes, given_sizes, quick_sizes
from _gram.gpu_trials import GpuLostError, Trials
from _gram.packing import PackEntry

SECTIONS = ("sweep", "headline", "one-layer", "packing")


def chosen_sizes(args: argparse.Namespace) -> GpuSizes:
    sizes = quick_sizes() if args.quick else full_sizes() if args.full else default_sizes()
    if args.n or args.layers or args.width:
        return given_sizes(sizes, args.n, args.layers, args.width)
    return sizes


def chosen_sections(args: argparse.Namespace) -> list[str]:
    """Those asked for; ValueError where one of them is about the CPU alone."""
    if args.only is None:
        return list(SECTIONS)
    alone = [section for section in args.only if section not in SECTIONS]
    if alone:
        raise ValueError(
            f"--only {' '.join(alone)} is about the CPU; with --device cuda there are {', '.join(SECTIONS)}"
        )
    return [section for section in SECTIONS if section in args.only]


def require_kernels() -> list[str]:
    """What can be timed here, the chosen kernel first; ValueError without a GPU."""
    require_device("cuda")
    return kernels_here()


class Run:
    """The sections, each of which prints its table; the JSON is written after every cell, with what there is then."""

    def __init__(self, args: argparse.Namespace, kernels: list[str], gpu: str):
        self.args, self.kernels, self.trials = args, kernels, Trials()
        self.plan = sections.Plan(chosen_sizes(args), kernels, rates_of(gpu), not args.no_peers, args.seed, self.trials)
        self.report = machine_report() | {"gpu": gpu, "cuda": torch.version.cuda, "kernels": kernels}
        self.path = args.out / "gram_cuda.json"
        self.found: dict[str, list[dict[str, object]]] = {}
        self.targets: list[targets.Target] = []
        self.swept: list[Entry] = []

    def sweep(self) -> None:
        self._entries("sweep", sections.sweep(self.plan), self.swept)

    def headline(self) -> None:
        entries = self._entries("headline", sections.headline(self.plan), [])
        self.targets += gpu_targets.headline_targets(entries, self.kernels[0], self.plan.sizes.never_stored)

    def one_layer(self) -> None:
        entries = self._entries("one-layer", sections.one_layer(self.plan), [])
        self.targets += gpu_targets.one_layer_targets(entries, self.kernels[0])

    def packing(self) -> None:
        entries: list[PackEntry] = []
        try:
            for part in sections.packing(self.plan):
                entries += part
                self._keep("packing", [asdict(e) | {"share_of_moved": e.share_of_moved} for e in entries])
        finally:
            print(f"packing by {packing_kernel()}, into reused words")
            print("memcpy: torch's copy_ of the same bytes, which writes as much as it reads")
            print_table(packing.HEADER, [entry.row() for entry in entries])
        self.targets += gpu_targets.packing_targets(entries)

    def _entries(self, section: str, parts: Iterator[list[Entry]], entries: list[Entry]) -> list[Entry]:
        """All entries, which are added to `entries` as they come; the table has a row for each failure too."""
        before = len(self.trials.failures)
        try:
            for part in parts:
                entries += part
                self._keep(section, [sections.entry_json(entry) for entry in entries])
        finally:
            failed = [failure.row(len(sections.HEADER)) for failure in self.trials.failures[before:]]
            print_table(sections.HEADER, [*sections.rows_of(entries, self.kernels[0]), *failed])
        return entries

    def _keep(self, section: str, found: list[dict[str, object]]) -> None:
        self.found[section] = found
        self.write()

    def write(self, *, complete: bool = False) -> None:
        """complete: nothing that was asked for is still to come."""
        content = {
            "machine": self.report,
            "options": {name: str(value) for name, value in vars(self.args).items()},
            "rates": None if self.plan.rates is None else asdict(self.plan.rates),
            "complete": complete,
            **self.found,
            "failures": [failure.to_json() for failure in self.trials.failures],
            "targets": [asdict(target) | {"met": target.met} for target in self.targets],
        }
        write_json_atomically(self.path, content)

    def plot(self, path: Path) -> None:
        from _gram.roofline import plot_roofline

        ours = [entry for entry in self.swept if entry.by == self.kernels[0]]
        others = [entry for entry in self.swept if entry.by != self.kernels[0]]
        plot_roofline(path, ours, others, f"Lambda on {self.report['gpu']} ({self.kernels[0]})")
        print(f"wrote {path}")


def run(args: argparse.Namespace) -> int:
    """Prints tables; writes OUT/gram_cuda.json and OUT/gram_cuda.png. The exit status: 1 where a contestant failed."""
    wanted, kernels = chosen_sections(args), require_kernels()
    done = Run(args, kernels, torch.cuda.get_device_name())
    report = done.report
    facts = f"{report['gpu']}, torch {report['torch']}, CUDA {report['cuda']}, chosen kernel: {kernels[0]}"
    print(f"{facts}; CUDA events, medians, in turns, second-level cache cold")
    if done.plan.rates is None:
        print("no limits: the rates of this GPU are not known here")
    for section in wanted:
        print(f"\n== {section}", flush=True)
        try:
            getattr(done, section.replace("-", "_"))()
        except GpuLostError as error:
            done.write()
            print(f"\nThe run ends here, as the GPU works no more, and {done.path} has the rest: {error}")
            return 1
    print("\n== targets (of an H200)")
    print_table(targets.HEADER, [target.row() for target in done.targets])
    done.write(complete=True)
    print(f"\nwrote {done.path}")
    if done.swept and not args.no_plot:
        done.plot(args.out / "gram_cuda.png")
    failures = done.trials.failures
    if failures:
        print(f"{len(failures)} failed and have no times here; the first is {failures[0]}")
    return int(bool(failures))
