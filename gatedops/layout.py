"""The layout of a layer's gates inside a row of words (docs/math.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

KINDS = ("gate", "select")
# A layer begins, and its padding ends, at a multiple of this many words: 256 bits.
LAYER_WORDS = 8


def words_used(positions: int, channels: int) -> int:
    """Returns how many 32-bit words hold a layer's gates. If there are several positions, each starts on a 64-bit
    boundary."""
    return -(-channels // 32) if positions == 1 else positions * 2 * -(-channels // 64)


def layer_words(positions: int, channels: int) -> int:
    """Returns how many words a layer takes in a row, with its padding to 256 bits."""
    return -(-words_used(positions, channels) // LAYER_WORDS) * LAYER_WORDS


@dataclass(frozen=True)
class GateLayer:
    """The place of one layer's gates inside a row of words.

    Args:
        name: any string.
        shape: of the gates of one input, as the network has them: ``(w,)``, ``(T, C)`` for T tokens, ``(C, H, W)``
            for images, ``(C, D, H, W)`` for volumes; kind "select": ``(K, C, H, W)``, K masks per output position of a
            max-pool.
        kind: "gate", or "select" for the choices of a max-pool.
        first_word: index of the layer's first word in a row; a multiple of 8 (256 bits).
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "gate"
    first_word: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, needs one of {KINDS}")
        if len(self.shape) not in ((4,) if self.kind == "select" else (1, 2, 3, 4)):
            raise ValueError(
                f"shape: got {tuple(self.shape)}, needs (w,), (T, C), (C, H, W) or (C, D, H, W), or for kind 'select' "
                "(K, C, H, W)"
            )
        if min(self.shape) < 1:
            raise ValueError(f"shape: got {tuple(self.shape)}, a layer needs at least one gate")
        if self.first_word < 0 or self.first_word % LAYER_WORDS:
            raise ValueError(f"first_word: got {self.first_word}, needs a non-negative multiple of {LAYER_WORDS}")

    @property
    def channels(self) -> int:
        """Number of gates at one position."""
        return self.shape[1 if len(self.shape) == 2 or self.kind == "select" else 0]

    @property
    def positions(self) -> int:
        """Number of pixels, voxels or tokens; 1 for a fully connected layer."""
        return self.width // self.channels

    @property
    def width(self) -> int:
        """Number of gates in the layer."""
        width = 1
        for size in self.shape:
            width *= size
        return width

    @property
    def words(self) -> int:
        """Number of 32-bit words that the layer's gates occupy, without the padding behind them."""
        return words_used(self.positions, self.channels)
