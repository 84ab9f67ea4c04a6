"""Looks inside any torch network: its gates, its max-pool choices, its steps."""

from gatedops.trace.export import steps
from gatedops.trace.fuse import FuseReport, fuse_relu
from gatedops.trace.pooling import Window
from gatedops.trace.record import record_gates
from gatedops.trace.step import (
    Add,
    AddConstant,
    AvgPool,
    BatchNorm,
    Concat,
    Conv2d,
    Conv3d,
    Flatten,
    Gate,
    Input,
    Linear,
    MaxPool,
    Mean,
    Rearrange,
    Resample,
    Scale,
    Squash,
    Step,
)
from gatedops.trace.twin import GatedTwin, gated_twin
from gatedops.trace.unfuse import unfuse

__all__ = [
    "Add",
    "AddConstant",
    "AvgPool",
    "BatchNorm",
    "Concat",
    "Conv2d",
    "Conv3d",
    "Flatten",
    "FuseReport",
    "Gate",
    "GatedTwin",
    "Input",
    "Linear",
    "MaxPool",
    "Mean",
    "Rearrange",
    "Resample",
    "Scale",
    "Squash",
    "Step",
    "Window",
    "fuse_relu",
    "gated_twin",
    "record_gates",
    "steps",
    "unfuse",
]
