"""`python -m gatedops selftest` tests the kernels on this machine's GPUs. Those that are right and faster are used from
then on."""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from gatedops.backends import verdict_files
from gatedops.backends.choice import known_of, proved_choices, said_of
from gatedops.backends.families import FAMILIES
from gatedops.backends.gpus import Gpu, gpus, why_unusable
from gatedops.backends.kernels import KERNEL_BACKENDS, KernelBackend
from gatedops.backends.verdicts import UNKNOWN, Verdict
from gatedops.progress import shows_bars, stages
from gatedops.selftest import report
from gatedops.selftest.report import GpuResult
from gatedops.selftest.run import ENDING, LIMIT, Progress, run

_EXIT_CODES = "exit codes: 0, all that was tested is right; 1, something is not right; 2, nothing could be tested."

# A limit may be at most this many seconds.
_LONGEST = 86_400


class NothingToTry(Exception):
    """Says in one sentence why no kernel can be tested."""


@dataclass(frozen=True)
class Target:
    """A kind of GPU, and the GPU of this kind that is tested, as torch names it."""

    gpu: Gpu
    device: str


def main(arguments: Sequence[str]) -> int:
    """Runs the command, and returns its exit code."""
    options = _parse(arguments)
    try:
        with _ending_cleanly():
            if options.forget:
                return _forget()
            families = families_to_try(options.families, KERNEL_BACKENDS)
            seen = gpus()
            targets = usable(targets_of(options.device, seen))
            return self_test(KERNEL_BACKENDS, targets, families, seen, as_json=options.json, limit=options.limit)
    except NothingToTry as error:
        _tell(str(error))
        return 2
    except KeyboardInterrupt:
        _tell("Interrupted: the verdicts on the families that were done are kept.")
        return 128 + signal.SIGINT


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m gatedops selftest",
        description="Compares the kernels for GPUs with the portable ops, which are torch's own operations, on this "
        "machine's GPUs. If all results of a family of ops are right and its kernels are faster, they are used from "
        "then on. Kernels that crash or hang do no harm: each family runs in a process of its own.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("--device", help="for example cuda or cuda:1; default: one GPU of every kind that torch sees")
    parser.add_argument(
        "--families", nargs="+", metavar="FAMILY", help="for example gates or gram; default: all that have kernels"
    )
    parser.add_argument("--json", action="store_true", help="print the result with the times as JSON")
    parser.add_argument(
        "--limit",
        type=_seconds,
        metavar="SECONDS",
        default=LIMIT,
        help=f"how long a case may take, with compiling its kernels; default: {LIMIT:g}",
    )
    parser.add_argument("--forget", action="store_true", help="remove the verdicts that are kept, and test nothing")
    options = parser.parse_args(arguments)
    if options.forget and (options.device or options.families or options.json):
        parser.error("--forget removes the verdicts on all families and GPUs: give it alone")
    return options


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs seconds, above 0 and at most {_LONGEST}")
    return value


# --- what to try ----------------------------------------------------------------------------------------------------


def families_to_try(asked: Sequence[str] | None, backends: Sequence[KernelBackend]) -> list[str]:
    """Returns the families asked for, each once; all that have kernels if none are."""
    with_kernels = [family for family in FAMILIES if any(backend.ops_of(family) for backend in backends)]
    for family in asked or ():
        if family not in FAMILIES:
            raise NothingToTry(f"--families: got {family!r}, needs one or more of {', '.join(with_kernels)}")
        if family not in with_kernels:
            raise NothingToTry(f"--families: {family} has no kernels beside the portable ones")
    return list(dict.fromkeys(asked)) if asked else with_kernels


def targets_of(asked: str | None, found: Sequence[Gpu]) -> list[Target]:
    """Returns the GPU asked for among the kinds found; one GPU of every kind if none is."""
    index = None if asked is None else _index_of(asked)
    if not found:
        raise NothingToTry(_why_no_gpu())
    if index is None:
        return [Target(gpu, gpu.device) for gpu in found]
    for gpu in found:
        if index in gpu.indices:
            return [Target(gpu, f"cuda:{index}")]
    names = ", ".join(f"cuda:{index}" for index in sorted(index for gpu in found for index in gpu.indices))
    raise NothingToTry(f"--device: got {asked!r}, torch sees {names}")


def _index_of(asked: str) -> int:
    try:
        device = torch.device(asked)
    except RuntimeError:
        _refuse(asked)
    if device.type != "cuda":
        _refuse(asked)
    return device.index or 0


def _refuse(device: str) -> NoReturn:
    raise NothingToTry(f"--device: got {device!r}, needs an NVIDIA GPU: cuda, or cuda:1 for the second one") from None


def _why_no_gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "torch sees no GPU, because it is built for the CPU alone: install a torch built for CUDA"
    return "torch sees no GPU, and the kernels to test need an NVIDIA GPU and its driver"


def usable(targets: Sequence[Target]) -> list[Target]:
    """Returns the targets that torch can compute on, and prints why it cannot use the others."""
    reasons = {target: why_unusable(target.device) for target in targets}
    if all(reasons.values()):
        raise NothingToTry("; ".join(reason for reason in reasons.values() if reason))
    for reason in reasons.values():
        if reason:
            _tell(reason)
    return [target for target, reason in reasons.items() if not reason]


# --- trying it ------------------------------------------------------------------------------------------------------


def self_test(
    backends: Sequence[KernelBackend],
    targets: Sequence[Target],
    families: Sequence[str],
    seen: Sequence[Gpu],
    *,
    as_json: bool = False,
    limit: float = LIMIT,
) -> int:
    """Tests families of backends on targets, keeps the verdicts and prints them. Returns the exit code of the command.
    `seen` are all kinds of GPU that torch sees: a family must be right and faster on each of them to be chosen.

    Raises NothingToTry if no backend can run on any target.
    """
    concerned = [backend for backend in backends if any(backend.ops_of(family) for family in families)]
    missing = [_missing(concerned, target) for target in targets]
    if all(len(lacks) == len(concerned) for lacks in missing):
        lacks = "; ".join(f"{name} {lack}" for name, lack in missing[0].items())
        raise NothingToTry(f"No kernels can run here: {lacks}")
    with verdict_files.alone(_tell):
        tested = [
            _try(backends, families, target, lacks, limit) for target, lacks in zip(targets, missing, strict=True)
        ]
    able = [backend for backend in backends if not all(backend.name in lacks for lacks in missing)]
    chosen = proved_choices(able, [known_of(gpu, able, backends) for gpu in seen])
    print(report.json_of(tested, backends, chosen) if as_json else report.text_of(tested, chosen), flush=True)
    return 0 if all(found.is_right for found in tested) else 1


def _missing(backends: Sequence[KernelBackend], target: Target) -> dict[str, str]:
    """Returns what backends need and lack if this target is the current GPU."""
    on_gpu = torch.device(target.device).type == "cuda"
    with torch.cuda.device(target.device) if on_gpu else contextlib.nullcontext():
        found = {backend.name: backend.missing() for backend in backends}
    return {name: lack for name, lack in found.items() if lack is not None}


def _try(
    backends: Sequence[KernelBackend],
    families: Sequence[str],
    target: Target,
    missing: dict[str, str],
    limit: float,
) -> GpuResult:
    """Tests on one target, and keeps the verdicts."""
    able = [backend for backend in backends if backend.name not in missing]
    count = sum(bool(backend.ops_of(family)) for family in families for backend in able)
    kept, not_kept = None, ""
    with _shown(f"{target.gpu.name} ({target.device})", count) as show:

        def keep(family: str, name: str, verdict: Verdict) -> None:
            nonlocal kept, not_kept
            show(family, name, verdict)
            found = {} if verdict.outcome == UNKNOWN else {family: {name: verdict}}
            try:
                kept = str(verdict_files.keep(target.gpu, backends, found))
            except OSError as error:
                not_kept = f"{error.filename}: {error.strerror}" if error.filename else str(error)

        verdicts = run(able, families, target.device, limit, keep)
    return GpuResult(target.gpu, target.device, verdicts, missing, None if not_kept else kept, not_kept)


# --- around it ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _shown(where: str, count: int) -> Iterator[Progress]:
    """Shows the verdicts on stderr as they come: by a bar on a terminal if tqdm is installed, else by one line each."""

    def show_line(family: str, backend: str, verdict: Verdict) -> None:
        _tell(f"{family} in {backend}: {said_of(verdict)}")

    _tell(f"Testing on {where}; this can take some minutes.")
    if not shows_bars():
        yield show_line
        return
    with stages(count, "family", "selftest") as advance:
        yield lambda family, backend, verdict: advance(f"{family} in {backend}: {said_of(verdict)}")


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Turns a signal that ends the process into an exception, so that no test goes on without it. Signals that are
    ignored, for example under nohup, stay ignored."""

    def end(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    heeded = [n for n in ENDING if n != signal.SIGINT and signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget() -> int:
    try:
        removed, errors = verdict_files.forget()
    except OSError as error:
        removed, errors = [], [error]
    for path in removed:
        print(f"Removed {path}")
    for reason in errors:
        _tell(f"A verdict cannot be removed: {reason}")
    if not removed and not errors:
        print(f"There is nothing to forget: no verdicts are kept in {verdict_files.folder_in_words()}.")
    return 1 if errors else 0


def _tell(sentence: str) -> None:
    """Prints on stderr, even if it is closed or full."""
    with contextlib.suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
