"""A run of the Gram benchmark on a GPU."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from _common.machine import machine_report
from _common.options import require_device
from _common.output import print_table, write_json_atomically

from _gram import gpu_sections as sections
from _gram import gpu_targets, packing, targets
from _gram.entry import Entry
from _gram.gpu_limits import rates_of
from _gram.gpu_peers import TRITON, kernels_here
from _gram.gpu_sizes import GpuSizes, default_sizes, full_sizes, given_sizes, quick_sizes
from gatedops import backends

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
    require_device("cuda")
    if not backends.supports(torch.device("cuda"), "npk_gram"):
        raise ValueError("--device cuda needs the experimental kernels: set GATEDOPS_BACKEND=cuda, or triton")
    return kernels_here()


class Run:
    """The sections, each of which prints its table and adds to the content of the JSON."""

    def __init__(self, args: argparse.Namespace, kernels: list[str], gpu: str):
        self.sizes, self.peers, self.seed = chosen_sizes(args), not args.no_peers, args.seed
        self.kernels, self.rates = kernels, rates_of(gpu)
        self.found: dict[str, Any] = {}
        self.targets: list[targets.Target] = []
        self.swept: list[Entry] = []

    def sweep(self) -> None:
        self.swept = sections.sweep(self.sizes, self.kernels, self.rates, peers=self.peers, seed=self.seed)
        self._entries("sweep", self.swept)

    def headline(self) -> None:
        entries = sections.headline(self.sizes, self.kernels, self.rates, peers=self.peers, seed=self.seed)
        self._entries("headline", entries)
        self.targets += gpu_targets.headline_targets(entries, self.kernels[0])

    def one_layer(self) -> None:
        entries = sections.one_layer(self.sizes, self.kernels, self.rates, self.seed)
        self._entries("one-layer", entries)
        self.targets += gpu_targets.one_layer_targets(entries, self.kernels[0])

    def packing(self) -> None:
        if TRITON not in self.kernels:
            print("packing on a GPU needs triton, which is not installed")
            return
        entries = sections.packing(self.sizes, self.seed)
        print("into reused words; memcpy: torch's copy_ of the same bytes, which writes as much as it reads")
        print_table(packing.HEADER, [entry.row() for entry in entries])
        self.targets += gpu_targets.packing_targets(entries)
        self.found["packing"] = [asdict(entry) | {"share_of_moved": entry.share_of_moved} for entry in entries]

    def _entries(self, section: str, entries: list[Entry]) -> None:
        print_table(sections.HEADER, sections.rows_of(entries, self.kernels[0]))
        self.found[section] = [sections.entry_json(entry) for entry in entries]


def run(args: argparse.Namespace) -> None:
    """Prints tables; writes OUT/gram_cuda.json and OUT/gram_cuda.png."""
    wanted, kernels = chosen_sections(args), require_kernels()
    gpu = torch.cuda.get_device_name()
    report = machine_report() | {"gpu": gpu, "cuda": torch.version.cuda, "kernels": kernels}
    facts = f"{gpu}, torch {report['torch']}, CUDA {report['cuda']}, chosen kernel: {kernels[0]}"
    print(f"{facts}; CUDA events, medians, in turns, second-level cache cold")
    done = Run(args, kernels, gpu)
    if done.rates is None:
        print("no limits: the rates of this GPU are not known here")
    for section in wanted:
        print(f"\n== {section}")
        getattr(done, section.replace("-", "_"))()
    print("\n== targets (of an H200)")
    print_table(targets.HEADER, [target.row() for target in done.targets])
    content = {
        "machine": report,
        "options": {name: str(value) for name, value in vars(args).items()},
        "rates": None if done.rates is None else asdict(done.rates),
        **done.found,
        "targets": [asdict(target) | {"met": target.met} for target in done.targets],
    }
    write_json_atomically(args.out / "gram_cuda.json", content)
    print(f"\nwrote {args.out / 'gram_cuda.json'}")
    if done.swept and not args.no_plot:
        from _gram.roofline import plot_roofline

        ours = [entry for entry in done.swept if entry.by == kernels[0]]
        others = [entry for entry in done.swept if entry.by != kernels[0]]
        plot_roofline(args.out / "gram_cuda.png", ours, others, f"Lambda on {gpu} ({kernels[0]})")
        print(f"wrote {args.out / 'gram_cuda.png'}")
