"""What the path kernel of a convolutional net is invariant to: rotations of an image over its edges, if it pads so.

The net has random weights, convolutions of 3 x 3 with circular or with zero padding, and global average pooling. The
second image of a pair is rotated by every number of rows and columns. With circular padding the kernel of the pair
stays the same (docs/math.md, section 13); with zero padding it does not. Writes OUT/rotations.png.

    python examples/rotations.py
    python examples/rotations.py --data cifar10 --data-dir DIR --channels 64 64 128 128 --dense 256 256
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from _common.options import at_least, run_script, script_parser
from _common.output import print_table
from _common.plots import new_figure, save
from torch import Tensor

import gatedops
from gatedops import data
from gatedops.nn import conv_spec

CHANNELS = (64, 64, 64, 64)
ROTATED_WITH = 3  # images

# For each kind of padding the largest (max - min) / mean over the pairs, and the map of the first pair.
Found = Mapping[str, tuple[float, Tensor]]


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "data")
    add, some = options.add_argument, at_least(1)
    add("--channels", type=some, nargs="+", default=list(CHANNELS), metavar="C", help="channels of each convolution")
    add("--dense", type=some, nargs="*", default=[], metavar="W", help="gated layers behind the pooling")
    options.set_defaults(no_plot=False)  # the picture is what it makes: without matplotlib it does not start
    return options


def over_rotations(images: Tensor, args: argparse.Namespace) -> Found:
    """For circular and for zero padding, with one set of random weights, how much the kernel of two images changes when
    one of them is rotated over its edges by every number of rows and columns.

    Returns the largest (max - min) / mean of H(x, rotated x') over the images x, and the map (H, W) of H(x, x' rotated
    by h rows and w columns) over its mean for one x. Everything is in float64: in float32 a pre-activation close to 0
    may change its sign with the order of a sum.
    """
    images = images[: ROTATED_WITH + 1].double()
    _, _, height, width = images.shape
    rotated = torch.stack([images[-1].roll((h, w), (1, 2)) for h in range(height) for w in range(width)])
    found = {}
    for padding in ("circular", "zeros"):
        spec = conv_spec(images.shape[1:], args.channels, args.dense, 2, "gap", padding_mode=padding)
        net = spec.relu_net(args.seed, dtype=torch.float64).eval()
        h = gatedops.npk(net, images[:-1], rotated, dtype=torch.float64)
        spread = (h.amax(1) - h.amin(1)) / h.mean(1)
        found[padding] = float(spread.max()), (h[0] / h[0].mean()).view(height, width)
    return found


def draw(found: Found, path: Path) -> None:
    """Draws a map for each kind of padding."""
    figure = new_figure(7, 5, 0.12)
    axes = figure.subplots(1, len(found))
    reach = max(float((one - 1).abs().max()) for _, one in found.values())
    for axis, (padding, (spread, one)) in zip(axes, found.items(), strict=True):
        shown = axis.imshow(one.numpy(), vmin=1 - reach, vmax=1 + reach, cmap="RdBu_r", interpolation="nearest")
        axis.set_title(f"{padding} padding\n(max - min) / mean: {spread:.1e}", fontsize=12)
        axis.set_xlabel("columns rotated", fontsize=11)
    axes[0].set_ylabel("rows rotated", fontsize=11)
    figure.suptitle("H(x, x' rotated) / its mean over rotations", fontsize=13)
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8)
    save(figure, path)


def run(args: argparse.Namespace) -> None:
    images = data.load(args.data, args.data_dir, n=ROTATED_WITH + 1, seed=args.seed)
    found = over_rotations(images.inputs(torch.cat([images.train_images, images.test_images])), args)
    header = ("padding", "H over all rotations of one image: (largest - smallest) / mean")
    print_table(header, [(padding, f"{spread:.2e}") for padding, (spread, _) in found.items()])
    path = args.out / "rotations.png"
    draw(found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
