"""Computes statistics of gates from their bits: how often they are on, how they change in training, what classes
and pairs of inputs share, and linear regions.

docs/math.md, section 12, has the formulas.
"""

from gatedops.stats.activity import GateStats, LayerStats, gate_stats
from gatedops.stats.alignment import npk_alignment, npk_alignments
from gatedops.stats.change import GateChange, LayerChange, gate_change
from gatedops.stats.classes import ClassOverlap, LayerOverlap, class_overlap
from gatedops.stats.naswot import naswot_score
from gatedops.stats.pairs import LayerPair, PairExplanation, explain_pair
from gatedops.stats.plots import (
    plot_alignments,
    plot_class_overlap,
    plot_class_pairs,
    plot_gate_change,
    plot_gate_shares,
    plot_gate_stats,
    plot_history,
)
from gatedops.stats.recorder import GateRecorder
from gatedops.stats.regions import RegionCounts, count_regions

__all__ = [
    "ClassOverlap",
    "GateChange",
    "GateRecorder",
    "GateStats",
    "LayerChange",
    "LayerOverlap",
    "LayerPair",
    "LayerStats",
    "PairExplanation",
    "RegionCounts",
    "class_overlap",
    "count_regions",
    "explain_pair",
    "gate_change",
    "gate_stats",
    "naswot_score",
    "npk_alignment",
    "npk_alignments",
    "plot_alignments",
    "plot_class_overlap",
    "plot_class_pairs",
    "plot_gate_change",
    "plot_gate_shares",
    "plot_gate_stats",
    "plot_history",
]
