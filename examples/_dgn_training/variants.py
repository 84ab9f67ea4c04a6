"""The variants that the papers compare, and the networks of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from _dgn_training import papers
from _dgn_training.setup import STAGES
from gatedops import DGN, DLGN
from gatedops.nn import ConvSpec, FCSpec


@dataclass(frozen=True)
class Variant:
    """One way to get the gates, and what the value network does with them.

    mode      the mode of gatedops.DGN; "ReLU" is the ordinary network
    stage     in mode "FL", which state of the ReLU network gives the gates, 0 .. 6; None takes, for each seed, the
              state with the highest test accuracy
    permuted  True if value layers have the gates of other layers of the same shape
    """

    name: str
    title: str
    mode: Literal["ReLU", "FR-II", "FR-DI", "FL", "DL"]
    stage: int | None = None
    linear: bool = False
    shallow: bool = False
    ones: bool = False
    permuted: bool = False

    @property
    def hard(self) -> bool:
        """Says whether the gates are frozen, and so known before training."""
        return self.mode in ("FR-II", "FR-DI", "FL")


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("relu", "ReLU", "ReLU"),
        Variant("fr-ii", "FRNPF (II)", "FR-II"),
        Variant("fr-di", "FRNPF (DI)", "FR-DI"),
        Variant("dl", "DLNPF (DGN)", "DL"),
        Variant("fl", "FLNPF", "FL"),
        *(Variant(f"fl-{stage}", f"FL-{stage}", "FL", stage) for stage in range(STAGES)),
        Variant("dlgn", "DLGN", "DL", linear=True),
        Variant("dlgn-sf", "DLGN-SF", "DL", linear=True, shallow=True),
        Variant("dl-ones", "DLNPF, PWC", "DL", ones=True),
        Variant("dl-permuted", "DLNPF, permuted", "DL", permuted=True),
        Variant("dlgn-ones", "DLGN, PWC", "DL", linear=True, ones=True),
        Variant("fl-ones", "FLNPF, PWC", "FL", ones=True),
        Variant("fl-permuted", "FLNPF, permuted", "FL", permuted=True),
    )
}
# These are the columns of the papers' table.
PAPERS = ("fr-ii", "fr-di", "dl", "fl", "relu")
CURVE = tuple(f"fl-{stage}" for stage in range(STAGES))
# Value networks have seeds from here on, because ReLU networks have the seeds from 0 on.
VALUE_SEED = 10_000
GROUPS = {"papers": PAPERS, "curve": CURVE, "all": tuple(VARIANTS)}


def expanded(names: Sequence[str]) -> list[Variant]:
    """Returns the variants of these names and groups, each once, in the order in which they can be trained."""
    wanted = {name for given in names for name in GROUPS.get(given, (given,))}
    if any(VARIANTS[name].mode == "FL" for name in wanted):
        wanted.add("relu")
    return [variant for name, variant in VARIANTS.items() if name in wanted]


def relu_nets(spec: FCSpec | ConvSpec, seeds: int) -> list[nn.Sequential]:
    """Returns the ordinary ReLU network of each seed, as initialised."""
    return [spec.relu_net(seed) for seed in range(seeds)]


def deep_gated_nets(
    variant: Variant, spec: FCSpec | ConvSpec, seeds: int, features: Sequence[Mapping[str, Tensor]] | None
) -> list[DGN]:
    """Returns the deep gated network of each seed, initialised independently of the ReLU network.

    features  in mode "FL", for each seed the state_dict of the network that gives the gates
    """
    model = DLGN if variant.linear else DGN
    return [
        model(
            spec,
            variant.mode,
            feature=None if features is None else features[seed],
            beta=papers.SOFT_BETA,
            gain=papers.SOFT_GAIN,
            value_input="ones" if variant.ones else "x",
            order=permuted_order(spec) if variant.permuted else None,
            shallow=variant.shallow,
            generator=torch.Generator().manual_seed(VALUE_SEED + seed),
        )
        for seed in range(seeds)
    ]


def permuted_order(spec: FCSpec | ConvSpec) -> list[int]:
    """Returns the order that rotates each group of adjacent layers with gates of one shape by one.

    So no layer of a group of two or more keeps its own gates.
    """
    kinds = [("fc", w) for w in spec.widths] if isinstance(spec, FCSpec) else _conv_kinds(spec)
    order: list[int] = []
    for _, group in groupby(enumerate(kinds), key=lambda place: place[1]):
        layers = [layer for layer, _ in group]
        order += layers[1:] + layers[:1]
    return order


def _conv_kinds(spec: ConvSpec) -> list[tuple[str, int]]:
    return [*(("conv", channels) for channels in spec.channels), *(("fc", width) for width in spec.dense)]
