"""Lists the function that turns each operation of an exported graph into a step."""

from __future__ import annotations

from typing import Any

from gatedops.trace.step_arithmetic import ARITHMETIC
from gatedops.trace.step_builder import Converter
from gatedops.trace.step_gates import GATES
from gatedops.trace.step_layers import LAYERS
from gatedops.trace.step_movements import MOVEMENTS
from gatedops.trace.step_transposed import TRANSPOSED
from gatedops.trace.step_volumes import VOLUMES

CONVERTERS: dict[Any, Converter] = {**LAYERS, **TRANSPOSED, **VOLUMES, **GATES, **ARITHMETIC, **MOVEMENTS}
