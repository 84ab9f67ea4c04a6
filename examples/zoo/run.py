"""Runs the library on the networks of the zoo, and says what works and why the rest does not.

For each network, the script records the gates (record_gates), fuses the ReLUs (fuse_relu), makes the gated twin
(gated_twin) and computes the neural path kernel (npk). It checks each result by computing it in another way. Writes
docs/coverage.md, and docs/img/coverage.png if matplotlib is installed. A run with --only writes neither.

    python examples/zoo/run.py
    python examples/zoo/run.py --only ResNet "U-Net" --json /tmp/zoo.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import dense_nets
import image_nets
import mobile_nets
import other_nets
import sequence_nets
from network import Network
from outcome import outcome
from steps import STEPS
from table import Row, as_json, counts, markdown, printed

from gatedops.atomic_file import write_text
from gatedops.progress import with_bar

NETWORKS: tuple[Network, ...] = (
    *image_nets.NETWORKS,
    *dense_nets.NETWORKS,
    *mobile_nets.NETWORKS,
    *sequence_nets.NETWORKS,
    *other_nets.NETWORKS,
)
# This network runs first and once more in its turn, so that no time in the table includes what the first calls load.
WARM_UP = "MLP"
DOCS = Path(__file__).resolve().parents[2] / "docs"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", metavar="NAME", help="run these networks alone, and write no docs")
    options.add_argument("--json", type=Path, metavar="PATH", help="write all outcomes to this file too")
    options.add_argument("--no-docs", action="store_true", help="write neither docs/coverage.md nor its picture")
    return options


def chosen(names: Sequence[str] | None) -> list[Network]:
    """Returns the networks of these names in the order of the zoo, or all networks if names is None.

    Raises:
        ValueError: a name that no network has.
    """
    listed = [network.name for network in NETWORKS]
    for name in names or ():
        if name not in listed:
            raise ValueError(f"--only: {name!r} is none of the networks: {', '.join(listed)}")
    return [network for network in NETWORKS if names is None or network.name in names]


def row_of(network: Network) -> Row:
    """Runs all steps on one network, each on a module of its own."""
    outcomes = {}
    for name, step in STEPS.items():
        model, example = network.ready()
        # A check may take the parametrizations off the model, and their parameters with them.
        parameters = sum(parameter.numel() for parameter in model.parameters())
        outcomes[name] = outcome(step, model, example, **network.options.get(name, {}))
    return Row(network, parameters, outcomes)


def run(args: argparse.Namespace) -> None:
    networks = chosen(args.only)
    if args.json and not args.json.resolve().parent.is_dir():
        raise ValueError(f"--json: {args.json.parent} is not a folder; make it first")
    row_of(*chosen([WARM_UP]))
    bar = with_bar(networks, "zoo", "network", len(networks), None)
    rows = [row_of(network) for network in bar]
    print(printed(rows))
    print(f"\n{counts(rows)}")
    if args.json:
        write_text(args.json, json.dumps(as_json(rows), indent=1) + "\n")
        print(f"wrote {args.json}")
    if not args.only and not args.no_docs:
        write_docs(rows)


def write_docs(rows: Sequence[Row]) -> None:
    write_text(DOCS / "coverage.md", markdown(rows))
    print(f"wrote {DOCS / 'coverage.md'}")
    if find_spec("matplotlib") is None:
        print("wrote no picture, because matplotlib is missing: pip install matplotlib")
        return
    from picture import plot_table

    plot_table(DOCS / "img" / "coverage.png", rows)
    print(f"wrote {DOCS / 'img' / 'coverage.png'}")


def main() -> int:
    args = parser().parse_args()
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
