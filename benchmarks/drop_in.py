"""Other people's nets: what recording their gates costs, and what fusing their ReLUs gains.

Four networks, written the way people write them (a Sequential MLP, VGG-11, ResNet-18 with functional ReLUs, a stack of
torch's transformer encoder layers), random weights and inputs. Recording: gatedops.record_gates, forward hooks written
by hand for that very network, and the network alone, which is the limit. Fusing: gatedops.fuse_relu against the network
as it was. Contestants must agree in every bit before a time is given. Then a small net learns the digits and the gates
of one of them are drawn. Writes OUT/drop_in.json and OUT/drop_in.png.

    python benchmarks/drop_in.py
    python benchmarks/drop_in.py --networks MLP ResNet-18 --n 256
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from _common.contention import Contention, sentence
from _common.machine import machine_report
from _common.options import DEFAULT_OUT, at_least, require_folder, require_matplotlib
from _common.output import print_table, write_json_atomically
from _drop_in import fusing, recording
from _drop_in.models import SUBJECTS

REPEATS = 11


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    names = [subject.name for subject in SUBJECTS]
    add("--networks", choices=names, nargs="+", default=names, metavar="NAME", help=", ".join(names))
    add("--n", type=at_least(1), default=32, help="inputs to record (default: %(default)s)")
    add("--batch", type=at_least(1), default=32, help="inputs at a time (default: %(default)s)")
    add("--repeats", type=at_least(1), default=REPEATS, help="timed runs of each, at most (default: %(default)s)")
    add("--no-plot", action="store_true", help="no PNG; matplotlib and scikit-learn are not needed")
    add("--out", type=Path, default=DEFAULT_OUT, help="folder for the results (default: benchmarks/out)")
    add("--seed", type=at_least(0), default=0, help="of everything random (default: %(default)s)")
    return options


def run(args: argparse.Namespace) -> None:
    if not args.no_plot:
        require_matplotlib()
    require_folder(args.out)
    report, contention = machine_report(), Contention()
    subjects = [subject for subject in SUBJECTS if subject.name in args.networks]
    recorded, fused = [], []
    for subject in subjects:
        recorded += recording.time_recording(subject, args.n, args.batch, args.repeats, args.seed)
        fused += fusing.time_fusing(subject, args.batch, args.repeats, args.seed)
    busy = contention.cores()
    print(f"{report['cpu']}, {report['threads']} threads, {report['instruction_set']}, torch {report['torch']}")
    print(f"\nRecording the gates of {args.n} inputs, {args.batch} at a time; the bits agree with the hooks' masks")
    print_table(recording.HEADER, [result.row() for result in recorded])
    print(f"\nOne batch of {args.batch} before and after fuse_relu; the outputs agree in every bit")
    print_table(fusing.HEADER, [result.row() for result in fused])
    print(sentence(busy))
    figures = {
        "machine": report,
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()},
        "other_cores_busy": busy,
        "recording": [asdict(result) for result in recorded],
        "fusing": [asdict(result) for result in fused],
    }
    write_json_atomically(args.out / "drop_in.json", figures)
    print(f"\nwrote {args.out / 'drop_in.json'}")
    if not args.no_plot:
        from _drop_in.picture import draw, walk

        draw(args.out / "drop_in.png", walk(args.seed))
        print(f"wrote {args.out / 'drop_in.png'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run(args)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f"drop_in.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
