"""Small images in a JSON file: 8-bit levels between the least and the largest value."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LARGEST = 255


def encoded(image: Tensor) -> dict[str, object]:
    """A matrix of finite numbers as JSON can hold it, each rounded to one of 256 levels."""
    values = image.detach().double().cpu()
    low, high = float(values.min()), float(values.max())
    levels = ((values - low) / (high - low or 1.0) * LARGEST).round().to(torch.uint8)
    packed = base64.b64encode(zlib.compress(levels.numpy().tobytes(), 9)).decode("ascii")
    return {"height": len(values), "width": values.shape[1], "low": low, "high": high, "levels": packed}


def decoded(image: Mapping[str, Any]) -> Tensor:
    """Float64 (height, width), to half a level what was encoded."""
    levels = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(image["levels"]))), dtype=torch.uint8)
    values = levels.double() / LARGEST * (image["high"] - image["low"]) + image["low"]
    return values.view(image["height"], image["width"])
