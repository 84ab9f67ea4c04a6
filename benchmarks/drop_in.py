"""Other people's nets: what recording their gates costs, and what fusing their ReLUs gains.

Four networks, written the way people write them (a Sequential MLP, VGG-11, ResNet-18 with functional ReLUs, a stack of
torch's transformer encoder layers), random weights and inputs. Recording: gatedops.record_gates, forward hooks written
by hand for that very network, and the network alone, which is the limit. Fusing: gatedops.fuse_relu against the network
as it was. Contestants must agree in every bit before a time is given. Writes OUT/drop_in.json.

    python benchmarks/drop_in.py
    python benchmarks/drop_in.py --networks MLP ResNet-18 --n 256
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _common.contest import Call, Contest, Entry, Failures, always
from _common.options import at_least, run_script, script_parser
from _common.output import Results
from _drop_in.models import SUBJECTS, Subject, random_problem
from torch import Tensor, nn

import gatedops

REPEATS = 11
RECORDING, RECORD, HOOKS, ALONE = "recording", "record_gates", "hooks by hand", "the network alone"
FUSED, EAGER = "fused", "eager"


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__)
    add = options.add_argument
    names = [subject.name for subject in SUBJECTS]
    add("--networks", choices=names, nargs="+", default=names, metavar="NAME", help=", ".join(names))
    add("--n", type=at_least(1), default=32, help="inputs to record (default: %(default)s)")
    add("--batch", type=at_least(1), default=32, help="inputs at a time (default: %(default)s)")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed runs of each, at most (default: %(default)s)")
    return options


class HookedByHand:
    """What people write: a forward hook on every module that shows gates, bool masks put together at the end."""

    def __init__(self, net: nn.Module, owners: list[nn.Module], batch: int) -> None:
        self.net, self.owners, self.batch = net, owners, batch

    @torch.no_grad()
    def __call__(self, x: Tensor) -> list[Tensor]:
        seen: list[list[Tensor]] = [[] for _ in self.owners]

        def hook(kept: list[Tensor]) -> Callable[..., None]:
            return lambda module, args, output: kept.append(output > 0)

        hooks = [owner.register_forward_hook(hook(kept)) for owner, kept in zip(self.owners, seen, strict=True)]
        for rows in x.split(self.batch):
            self.net(rows)
        for handle in hooks:
            handle.remove()
        return [torch.cat(kept) for kept in seen]


def time_recording(subject: Subject, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times record_gates, the hooks and the network alone, which is the limit of both."""
    net, x = random_problem(subject, args.n, args.seed)
    by_hand = HookedByHand(net, subject.owners(net), args.batch)
    masks = by_hand(x)
    gates = sum(mask[0].numel() for mask in masks)

    def agree(call: Call) -> dict[str, object]:
        bits = call()
        if not all(torch.equal(found, mask) for found, mask in zip(bits.unpack(), masks, strict=True)):
            raise RuntimeError("record_gates and hooks by hand disagree")
        return {"gates": gates, "bytes_per_input": bits.nbytes / args.n}

    @torch.no_grad()
    def alone() -> None:
        for rows in x.split(args.batch):
            net(rows)

    contest = Contest(subject.name, failures)
    contest.enter(RECORDING, RECORD, always(partial(gatedops.record_gates, net, x, args.batch)), check=agree)
    hooked = {"gates": gates, "bytes_per_input": float(gates)}
    contest.enter(RECORDING, HOOKS, always(partial(by_hand, x)), facts=hooked)
    contest.enter(RECORDING, ALONE, always(alone), facts={"gates": gates})
    return contest.run(args.repeats, base=(RECORDING, RECORD), limits=(ALONE,))


def forward(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x)


def forward_and_backward(net: nn.Module, x: Tensor) -> Tensor:
    net.zero_grad()
    output = net(x)
    output.square().sum().backward()
    return output


PASSES = {"forward": forward, "forward + backward": forward_and_backward}


def time_fusing(subject: Subject, args: argparse.Namespace, failures: Failures) -> list[Entry]:
    """Times both passes of one batch, each before and after fuse_relu in turns."""
    net, x = random_problem(subject, args.batch, args.seed)
    fused: Any = None  # an nn.Module with a fuse_report
    with failures.caught(subject.name, "fuse_relu", FUSED):
        fused = gatedops.fuse_relu(net, x)
    if fused is None:
        return []
    facts = {"replaced": len(fused.fuse_report.replaced), "kept": len(fused.fuse_report.kept)}
    if not facts["replaced"]:
        print(f"{subject.name}: fuse_relu replaces nothing ({facts['kept']} ReLUs stay torch's), nothing is timed")
        return []
    entries: list[Entry] = []
    for what, one_pass in PASSES.items():
        contest, before = Contest(subject.name, failures), partial(one_pass, net, x)
        check = partial(require_same_output, before)
        contest.enter(what, FUSED, always(partial(one_pass, fused, x)), check=check, facts=facts)
        contest.enter(what, EAGER, always(before), facts=facts)
        entries += contest.run(args.repeats, base=(what, FUSED))
    return entries


def require_same_output(before: Call, after: Call) -> None:
    """Raises RuntimeError if the fused network gives another output in any bit."""
    if not after().equal(before()):
        raise RuntimeError("fuse_relu changes the output")


def run(args: argparse.Namespace) -> int:
    results = Results(args, "drop_in")
    subjects = [subject for subject in SUBJECTS if subject.name in args.networks]
    with results.section(f"recording the gates of {args.n} inputs, {args.batch} at a time"):
        print("The bits agree with the hooks' masks; ratios are those to record_gates.")
        parts = [(one.name, partial(time_recording, one, args, results.failures)) for one in subjects]
        results.time_parts("recording", parts, ("gates", "bytes_per_input"))
    with results.section(f"one batch of {args.batch} before and after fuse_relu"):
        print("The outputs agree in every bit. replaced: layers that are ours; kept: modules whose ReLUs stay torch's")
        parts = [(one.name, partial(time_fusing, one, args, results.failures)) for one in subjects]
        results.time_parts("fusing", parts, ("replaced", "kept"))
    return results.finish()


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
