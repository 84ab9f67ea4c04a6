"""Which training digits make a prediction: the main helpers and opponents of some test digits, as a picture.

Trains a fully connected net without biases, and solves kernel ridge regression with the neural path kernel of its gates
(gatedops.solve.kernel_ridge). Each training digit adds K(x, x_i) alpha_i to the score of a class.
gatedops.solve.representers finds the digits that raise the score of the predicted class most (helpers) and those that
lower it most (opponents), and how many gates of each layer they share with the test digit. Half of the test digits are
those that the regression gets wrong, as far as there are any; the others are right by the smallest margin. Writes
OUT/why.json and OUT/why.png.

    python examples/why.py
    python examples/why.py --data mnist --data-dir DIR --n 10000
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import torch
from _common.machine import machine_report
from _common.options import at_least, between, options_json, run_script, script_parser
from _common.output import print_table, write_json_atomically
from _common.plots import encoded
from _common.relu_net import net_accuracy, relu_net, train
from torch import Tensor

import gatedops
from gatedops import GateBits, NPKOperator, data
from gatedops.path_kernels.regression import accuracy, one_hot
from gatedops.solve import Representers, kernel_ridge, representers

WIDTH, DEPTH, EPOCHS, RIDGE, SHOWN, NEAREST = 128, 4, 20, 0.1, 6, 5


def parser() -> argparse.ArgumentParser:
    options = script_parser(__doc__, "data", "plot")
    add = options.add_argument
    add("--n", type=at_least(10), help="points, a fifth of them test points (default: all)")
    add("--width", type=at_least(1), default=WIDTH, help="gates per layer (default: %(default)s)")
    add("--depth", type=at_least(2), default=DEPTH, help="weight layers, gated ones + 1 (default: %(default)s)")
    add("--epochs", type=at_least(0), default=EPOCHS, help="epochs of training (default: %(default)s)")
    add("--ridge", type=between(0, math.inf), default=RIDGE, help="in units of mean(diag K) (default: %(default)s)")
    add("--show", type=at_least(1), default=SHOWN, help="test digits in the picture (default: %(default)s)")
    add("--k", type=at_least(1), default=NEAREST, help="helpers, and opponents, of each (default: %(default)s)")
    return options


def chosen(scores: Tensor, labels: Tensor, count: int) -> Tensor:
    """Returns test points, int64 (count,): first those whose largest score is at a wrong class, then right ones.

    At most half of them, rounded up, are wrong, unless there are too few right ones. The right ones have the smallest
    margin between their class and the next.
    """
    best = scores.topk(2, 1).values
    is_wrong = scores.argmax(1) != labels
    # The clearest mistakes come first, and so do the least clear right answers.
    wrong = is_wrong.nonzero().flatten()
    wrong = wrong[(scores[wrong, labels[wrong]] - best[wrong, 0]).argsort(stable=True)]
    right = (~is_wrong).nonzero().flatten()
    right = right[(best[right, 0] - best[right, 1]).argsort(stable=True)]
    few = max(min(len(wrong), -(-count // 2)), count - len(right))
    return torch.cat([wrong[:few], right[: count - few]])


def strip(test: Tensor, train_images: Tensor, index: Tensor) -> Tensor:
    """Returns the images of a test point and of its training points side by side, uint8 (H, (1 + k) W). Colours become
    grey, and there is an empty image where the index is -1."""
    tiles = train_images[index.clamp_min(0)] * (index >= 0)[:, None, None, None]
    return torch.cat(list(torch.cat([test[None], tiles]).double().mean(1)), 1).round().to(torch.uint8)


def described(images: data.ImageData, places: Tensor, found: Representers, scores: Tensor) -> list[dict[str, Any]]:
    """Returns for the JSON what is found of each test point that is shown.

    Args:
        places: of the test points, int64 (m,).
        found: their representers, helpers and then opponents.
        scores: of these points, float64 (m, C).
    """
    shares = found.overlap_share
    if shares is None:
        raise RuntimeError("the kernel of packed gates tells layers")
    made = []
    for row, place in enumerate(places.tolist()):
        label, predicted = int(images.test_labels[place]), int(found.column[row])
        points = [
            {
                "training_point": index,
                "label": images.classes[int(images.train_labels[index])],
                "contribution": float(found.contribution[row, column]),
                "share": float(found.share[row, column]),
                "kernel": float(found.kernel[row, column]),
                "share_on_in_both": shares[row, column].tolist(),
            }
            for column, index in enumerate(found.index[row].tolist())
            if index >= 0
        ]
        one = {
            "test_point": place,
            "label": images.classes[label],
            "predicted": images.classes[predicted],
            "score": float(found.score[row]),
            "score_of_label": float(scores[row, label]),
            "mean": float(found.mean[row]),
            "rest": float(found.rest[row]),
            "helpers": [point for point in points if point["contribution"] > 0],
            "opponents": [point for point in points if point["contribution"] < 0],
        }
        made.append(one)
    return made


def mean_shares(test: GateBits, others: GateBits) -> list[list[float]]:
    """Returns for each row of `test` and each layer the share of the gates that are on in it and in a row of `others`,
    on average over those."""
    widths = torch.tensor(test.widths, dtype=torch.float64)
    return [(gatedops.gate_overlap(row, others)[:, 0].double().mean(1) / widths).tolist() for row in test]


def run(args: argparse.Namespace) -> None:
    images = data.load(args.data, args.data_dir, n=args.n, seed=args.seed)
    n, m = len(images.train_labels), len(images.test_labels)
    if args.show > m:
        raise ValueError(f"--show {args.show} is more than the {m} test points")
    if args.k > n:
        raise ValueError(f"--k {args.k} is more than the {n} training points")
    machine = machine_report()
    x, test_x = (images.inputs(part).flatten(1) for part in (images.train_images, images.test_images))
    net = relu_net(x.shape[1], args.width, args.depth, len(images.classes), args.seed)
    train(net, x, images.train_labels, args.epochs, args.seed)
    bits, test_bits = gatedops.record_gates(net, x), gatedops.record_gates(net, test_x)
    pixels, test_pixels = images.train_images.flatten(1), images.test_images.flatten(1)
    targets = one_hot(images.train_labels, len(images.classes))
    solution = kernel_ridge(NPKOperator(bits, pixels), targets, args.ridge)
    scores = solution.predict(NPKOperator(test_bits, test_pixels, bits, pixels))
    accuracies = {
        "net": net_accuracy(net, test_x, images.test_labels),
        "regression": accuracy(scores, images.test_labels),
    }
    print(f"{args.data}: {n:,} training and {m:,} test points, fully connected net with {args.depth - 1} gated layers")
    print(f"test accuracy: net {accuracies['net']:.1%}, regression with its kernel {accuracies['regression']:.1%}\n")
    places = chosen(scores, images.test_labels, args.show)
    few = NPKOperator(test_bits[places], test_pixels[places], bits, pixels)
    found = representers(solution, few, args.k, split=True)
    shown = described(images, places, found, scores[places])
    for one, everywhere in zip(shown, mean_shares(test_bits[places], bits), strict=True):
        one["share_on_in_both_of_all"] = everywhere
    content = {
        "machine": machine,
        "options": options_json(args),
        "points": {"train": n, "test": m},
        "accuracy": accuracies,
        "widths": list(found.widths),
        "shown": shown,
        "pictures": [
            encoded(strip(images.test_images[place], images.train_images, index))
            for place, index in zip(places.tolist(), found.index, strict=True)
        ],
    }
    report(args, content)


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Prints the table, and writes the JSON and the picture."""
    layers = [f"on in both, layer {place + 1}" for place in range(len(content["widths"]))]
    rows = []
    for one in content["shown"]:
        name = f"{one['test_point']}: a {one['label']}, taken for {one['predicted']}"
        for point in one["helpers"] + one["opponents"]:
            numbers = [f"{point['contribution']:+.4f}", f"{point['share']:.2%}"]
            both = [f"{share:.1%}" for share in point["share_on_in_both"]]
            rows.append([name, str(point["training_point"]), f"a {point['label']}", *numbers, *both])
    print_table(["test point", "training point", "label", "contribution", "share", *layers], rows)
    path = args.out / "why.json"
    write_json_atomically(path, content)
    print(f"\nwrote {path}")
    if not args.no_plot:
        from _why.picture import draw

        draw(path.with_suffix(".png"), content)
        print(f"wrote {path.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(run_script(parser(), run))
