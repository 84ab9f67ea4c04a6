"""Every operation of gatedops in plain torch: the specification that tests hold the kernels to.

Same names and keyword arguments as the package, any float dtype, any device, and no compiled code. Nothing
here is fast or small in memory: gates are unpacked to one number each and every count matrix is stored.
Arguments are taken as valid; the checked functions of the package raise for bad ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from gatedops.gatebits import GateBits
from gatedops.layout import GateLayer

LAYER_WORDS = 8  # a layer starts on a 256-bit boundary: 8 words of 32 gates
POSITION_GATES = 64  # a position starts on a 64-bit boundary


# --- packing: docs/math.md section 6 ------------------------------------------------------------------------


def gates_on(q: Tensor) -> Tensor:
    """Bool gates of pre-activations q: on means q > 0; 0, -0.0 and NaN are off. A bool q is as it is."""
    return q if q.dtype == torch.bool else q > 0


def by_position(masks: Tensor, kind: str = "gate") -> Tensor:
    """(n, *shape) to (n, P, C): the C gates of a position side by side, positions in row-major order.

    shape (w,) is one position; (T, C) has T; (C, H, W) has H*W; (C, D, H, W) has D*H*W. kind "select", shape
    (K, C, H, W), has H*W*K: the K masks of one output position follow each other.
    """
    if kind == "select":
        n, k, c, h, w = masks.shape
        return masks.permute(0, 3, 4, 1, 2).reshape(n, h * w * k, c)
    if masks.dim() == 4:
        n, c, h, w = masks.shape
        return masks.permute(0, 2, 3, 1).reshape(n, h * w, c)
    if masks.dim() == 5:
        n, c, d, h, w = masks.shape
        return masks.permute(0, 2, 3, 4, 1).reshape(n, d * h * w, c)
    return masks if masks.dim() == 3 else masks.unsqueeze(1)


def from_positions(masks: Tensor, shape: Sequence[int], kind: str = "gate") -> Tensor:
    """(n, P, C) back to (n, *shape): the inverse of `by_position`."""
    n = masks.shape[0]
    if kind == "select":
        k, c, h, w = shape
        return masks.reshape(n, h, w, k, c).permute(0, 3, 4, 1, 2)
    if len(shape) == 3:
        c, h, w = shape
        return masks.reshape(n, h, w, c).permute(0, 3, 1, 2)
    if len(shape) == 4:
        c, d, h, w = shape
        return masks.reshape(n, d, h, w, c).permute(0, 4, 1, 2, 3)
    return masks.reshape(n, *shape)


def words_of_layer(masks: Tensor) -> Tensor:
    """Bool (n, P, C) to int32 (n, words), 8 | words: gate j of a position is bit j%32 of its word j//32."""
    n, positions, channels = masks.shape
    unit = 32 if positions == 1 else POSITION_GATES
    masks = pad(masks, (0, -channels % unit)).reshape(n, positions * math.ceil(channels / unit) * unit)
    masks = pad(masks, (0, -masks.shape[1] % (32 * LAYER_WORDS)))
    bits = masks.reshape(n, masks.shape[1] // 32, 32).to(torch.int64)
    value = (bits << torch.arange(32, device=masks.device)).sum(-1)
    return torch.where(value < 2**31, value, value - 2**32).to(torch.int32)


def gates_of_layer(words: Tensor, positions: int, channels: int) -> Tensor:
    """Int32 (n, words) to bool (n, P, C): the inverse of `words_of_layer`; padding is dropped."""
    unit = 32 if positions == 1 else POSITION_GATES
    stride = math.ceil(channels / unit) * unit
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    bits = bits.reshape(words.shape[0], words.shape[1] * 32)[:, : positions * stride]
    return bits.reshape(words.shape[0], positions, stride)[:, :, :channels].bool()


def words_from_bool(
    masks: Sequence[Tensor], kinds: Sequence[str] | None = None, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[GateLayer, ...]]:
    """Bool tensors (n, *shape), one a layer, to the int32 words (n, W) and the layer records of GateBits."""
    kinds = kinds or ["select" if mask.dim() == 5 else "gate" for mask in masks]
    names = names or [str(index) for index in range(len(masks))]
    words: list[Tensor] = []
    layers: list[GateLayer] = []
    first = 0
    for mask, kind, name in zip(masks, kinds, names, strict=True):
        words.append(words_of_layer(by_position(mask, kind)))
        layers.append(GateLayer(name, tuple(mask.shape[1:]), kind, first))
        first += words[-1].shape[1]
    return torch.cat(words, 1), tuple(layers)


def pack_gates(q: Tensor) -> GateBits:
    """Pre-activations or bool gates (n, *shape) to GateBits of one layer."""
    return GateBits(*words_from_bool([gates_on(q)]))


def unpack_gates(bits: GateBits) -> list[Tensor]:
    """GateBits to one bool tensor (n, *shape) a layer."""
    masks = []
    for layer in bits.layers:
        _, positions, channels = by_position(torch.empty(1, *layer.shape, device="meta"), layer.kind).shape
        unit = 32 if positions == 1 else POSITION_GATES
        last = layer.first_word + positions * math.ceil(channels / unit) * unit // 32
        gates = gates_of_layer(bits.words[:, layer.first_word : last], positions, channels)
        masks.append(from_positions(gates, layer.shape, layer.kind))
    return masks


# --- the neural path kernel: docs/math.md sections 2 and 3 --------------------------------------------------


def gate_overlap(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Int32 (L, n, m): how many gates of layer l are on in both row i of a and row j of b (None: of a)."""
    left = unpack_gates(a)
    right = left if b is None else unpack_gates(b)
    # Sums of 0s and 1s: exact in float64 below 2^53, and a matrix product that every device has.
    counts = [p.flatten(1).double() @ q.flatten(1).double().T for p, q in zip(left, right, strict=True)]
    return torch.stack(counts).to(torch.int32)


def multipliers(bits: GateBits, scale: str | Sequence[float], dtype: torch.dtype) -> list[float]:
    """One factor a layer: 1/w_l ("width"), 1 ("none") or the given floats.

    Raises ValueError if scale is "none" and the largest Lambda, prod(w_l), is beyond dtype.
    """
    widths = [math.prod(layer.shape) for layer in bits.layers]
    if scale == "width":
        return [1.0 / width for width in widths]
    if scale == "none":
        if math.prod(widths) > torch.finfo(dtype).max:
            raise ValueError(f"scale='none': the product of the widths is beyond {dtype}; use scale='width'")
        return [1.0] * len(widths)
    return [float(s) for s in scale]


def scaled_product(counts: Tensor, scales: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Counts (L, ...) to Lambda (...): p = dtype(c_1) * s_1, then p = p * (dtype(c_l) * s_l), s_l in dtype.

    The order of arithmetic of docs/math.md section 3, each operation rounded: every backend gives these bits.
    """
    factors = [count.to(dtype) * torch.tensor(s, dtype=dtype) for count, s in zip(counts, scales, strict=True)]
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product


def input_gram(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """Sigma = x y^T (n, m) in dtype. uint8: exact integers (float64 holds them), rounded once to dtype."""
    if x.dtype == torch.uint8:
        return (x.double() @ y.double().T).to(dtype)
    return x.to(dtype) @ y.to(dtype).T


def npk_gram(
    x: Tensor | None,
    bits: GateBits,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """K = Sigma * Lambda (n, m), docs/math.md sections 2 and 3. x None: Lambda alone; no y: x with itself."""
    if normalize:
        y = None if y_bits is None else unit_rows(y, y_bits, scale, dtype)
        x = unit_rows(x, bits, scale, dtype)
    gram = scaled_product(gate_overlap(bits, y_bits), multipliers(bits, scale, dtype), dtype)
    if x is not None:
        gram = input_gram(x, x if y is None else y, dtype) * gram
    return gram if out is None else out.copy_(gram)


def unit_rows(x: Tensor | None, bits: GateBits, scale: str | Sequence[float], dtype: torch.dtype) -> Tensor:
    """Rows x_i / sqrt(K_ii), and 0 where K_ii is 0; x None: a column of ones (n, 1) takes its place."""
    diagonal = npk_diag(x, bits, scale=scale, dtype=dtype)
    rows = torch.ones_like(diagonal).unsqueeze(1) if x is None else x.to(dtype)
    # The inner where keeps 1/sqrt(0), and with it a NaN derivative, out of rows that are zero anyway.
    factor = torch.where(diagonal == 0, 0, 1 / torch.where(diagonal == 0, 1, diagonal).sqrt())
    return rows * factor.unsqueeze(1)


def npk_diag(
    x: Tensor | None,
    bits: GateBits,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """K_ii (n,), in the arithmetic of `npk_gram`."""
    counts = torch.stack([mask.flatten(1).sum(1) for mask in unpack_gates(bits)])
    diagonal = scaled_product(counts, multipliers(bits, scale, dtype), dtype)
    if x is None:
        return diagonal
    if x.dtype == torch.uint8:
        return x.double().square().sum(1).to(dtype) * diagonal
    return x.to(dtype).square().sum(1) * diagonal


def npk_matvec(
    x: Tensor | None,
    bits: GateBits,
    v: Tensor,
    y: Tensor | None = None,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """K v, with K of `npk_gram`: v (m, c) gives (n, c), v (m,) gives (n,)."""
    return npk_gram(x, bits, y, y_bits, scale=scale, dtype=dtype) @ v.to(dtype)


# --- agreement, neighbours and soft gates: docs/math.md sections 2 and 5 ------------------------------------


def gate_agreement(a: GateBits, b: GateBits | None = None) -> Tensor:
    """Int32 (L, n, m): how many gates of layer l are the same, on or off, in row i of a and row j of b."""
    left = unpack_gates(a)
    right = left if b is None else unpack_gates(b)
    off = [(~p).flatten(1).double() @ (~q).flatten(1).double().T for p, q in zip(left, right, strict=True)]
    return gate_overlap(a, b) + torch.stack(off).to(torch.int32)


def gate_neighbors(
    bits: GateBits,
    k: int,
    y_bits: GateBits | None = None,
    *,
    scale: str | Sequence[float] = "width",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Lambda (n, k) and int64 indices (n, k) of the k largest of each row, equal ones by index.

    Without y_bits a row is not its own neighbour.
    """
    gram = npk_gram(None, bits, None, y_bits, scale=scale, dtype=dtype)
    index = torch.arange(gram.shape[1], device=gram.device).expand(gram.shape)
    if y_bits is None:
        others = ~torch.eye(len(gram), dtype=torch.bool, device=gram.device)
        shape = (len(gram), max(len(gram) - 1, 0))
        gram, index = gram[others].reshape(shape), index[others].reshape(shape)
    values, order = gram.sort(dim=1, descending=True, stable=True)
    return values[:, :k], index.gather(1, order[:, :k])


def soft_npk_gram(
    x: Tensor | None,
    gates: Sequence[Tensor],
    y: Tensor | None = None,
    y_gates: Sequence[Tensor] | None = None,
    *,
    scale: str | Sequence[float] = "width",
    normalize: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """K = Sigma * prod_l s_l <g_l, g'_l> (n, m) of real-valued gates (n, *shape), docs/math.md section 5."""
    left = [gate.flatten(1).to(dtype) for gate in gates]
    right = left if y_gates is None else [gate.flatten(1).to(dtype) for gate in y_gates]
    factors = [1.0 / gate.shape[1] if scale == "width" else 1.0 for gate in left]
    if not isinstance(scale, str):
        factors = [float(s) for s in scale]
    if x is not None:  # Sigma is one more factor
        left, right = [*left, x.to(dtype)], [*right, (x if y is None else y).to(dtype)]
        factors = [*factors, 1.0]
    gram = torch.ones((), dtype=dtype, device=left[0].device)
    for p, q, s in zip(left, right, factors, strict=True):
        gram = gram * (p @ q.T * s)
    if not normalize:
        return gram
    return gram * soft_norms(left, factors).unsqueeze(1) * soft_norms(right, factors)


def soft_norms(rows: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    """1 / sqrt(K_ii) (n,), 0 where K_ii is 0, of factors prod_l s_l <r_l, r_l>, rows r_l (n, w_l)."""
    diagonal = torch.ones_like(rows[0][:, 0])
    for r, s in zip(rows, factors, strict=True):
        diagonal = diagonal * (r.square().sum(1) * s)
    return torch.where(diagonal == 0, 0, 1 / torch.where(diagonal == 0, 1, diagonal).sqrt())


# --- gated layers: docs/math.md section 8 ----------------------------------------------------------------------


def gated_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gate: GateBits | Tensor | None = None,
    *,
    return_gates: bool = False,
) -> Tensor | tuple[Tensor, GateBits]:
    """(x W^T + b) * gate (..., w): own gates (None), hard ones (GateBits, bool) or soft ones (float)."""
    product = torch.nn.functional.linear(x, weight, bias)
    if isinstance(gate, Tensor) and gate.dtype != torch.bool:
        return product * gate
    if gate is None:
        y, mask = product.relu(), product > 0
    else:
        mask = (unpack_gates(gate)[0] if isinstance(gate, GateBits) else gate).reshape(product.shape)
        y = torch.where(mask, product, 0)
    return (y, pack_gates(mask.reshape(-1, mask.shape[-1]))) if return_gates else y


def gated_linear_pair(
    h: Tensor,
    w_f: Tensor,
    b_f: Tensor | None,
    z: Tensor,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    gate: str = "hard",
    beta: float = 4.0,
    gain: float = 1.0,
    feature: str = "relu",
    gates_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, GateBits]:
    """One layer of a deep gated network: next feature activation, gated value output (..., w), gates of q."""
    q = torch.nn.functional.linear(h, w_f, b_f)
    v = torch.nn.functional.linear(z, w_v, b_v)
    h_next = q.relu() if feature == "relu" else q
    z_next = torch.where(q > 0, v, 0) if gate == "hard" else v * (gain * torch.sigmoid(beta * q))
    bits = pack_gates((q > 0).reshape(-1, q.shape[-1]))
    if gates_out is not None:
        bits = GateBits(gates_out.copy_(bits.words), bits.layers)
    return h_next, z_next, bits


# --- gate statistics: docs/math.md section 12 ------------------------------------------------------------------


def gate_counts(bits: GateBits) -> list[Tensor]:
    """For how many inputs each gate is on: int64 (*shape), one tensor a layer."""
    return [gates.sum(0) for gates in unpack_gates(bits)]
