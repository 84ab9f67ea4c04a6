"""Networks for sequences: with convolutions in time, with recurrence, and for tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from network import N, Network
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

STEPS, TOKENS, VOCABULARY = 10, 6, 50


class TemporalBlock(nn.Module):
    """Has two causal convolutions, and cuts off the steps that their padding adds at the end."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(inputs, outputs, 3, padding=self.cut, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(outputs, outputs, 3, padding=self.cut, dilation=dilation))
        self.relu1, self.relu2, self.relu = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.dropout = nn.Dropout(0.2)
        self.downsample = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(self.relu1(self.conv1(x)[:, :, : -self.cut].contiguous()))
        out = self.dropout(self.relu2(self.conv2(out)[:, :, : -self.cut].contiguous()))
        return cast(Tensor, self.relu(out + (x if self.downsample is None else self.downsample(x))))


class TCN(nn.Module):
    """Computes its output from the last step."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(TemporalBlock(4, 8, 1), TemporalBlock(8, 8, 2))
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(self.network(x)[:, :, -1]))


class ReLURNN(nn.Module):
    """torch's RNN with two layers and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 12, num_layers=2, nonlinearity="relu", batch_first=True)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return cast(Tensor, self.fc(out[:, -1]))


class Cell(nn.Module):
    """A recurrent cell as tutorials write it: its weights are bare parameters, and clamp is its ReLU."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.w_x, self.w_h = nn.Parameter(torch.randn(inputs, width) / 2), nn.Parameter(torch.randn(width, width) / 4)
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return (x @ self.w_x + h @ self.w_h + self.b).clamp(min=0)


class CellRNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.fc = Cell(4, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 12)
        for step in x.unbind(1):
            h = self.cell(step, h)
        return cast(Tensor, self.fc(h))


class LSTMHead(nn.Module):
    """An LSTM, and an MLP with ReLU that reads its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 12, batch_first=True)
        self.head = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return cast(Tensor, self.head(h[-1]))


class MixerBlock(nn.Module):
    """Has an MLP over the patches and one over the channels, each behind a LayerNorm."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, 24), nn.ReLU(), nn.Linear(24, patches))
        self.channels = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return cast(Tensor, x + self.channels(self.norm2(x)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 12), MixerBlock(16, 12))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return cast(Tensor, self.head(self.norm(self.blocks(tokens)).mean(dim=1)))


class DecoderLayer(nn.Module):
    """A layer of OPT: it begins with a LayerNorm, and its MLP sees the tokens of all inputs as one list."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation_fn: Callable[[Tensor], Tensor] = F.relu

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(self.self_attn_layer_norm(x)).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=mask)
        x = x + self.out_proj(attended.transpose(1, 2).reshape(n, tokens, width))
        flat = x.reshape(-1, width)
        hidden = self.activation_fn(self.fc1(self.final_layer_norm(flat)))
        return cast(Tensor, flat + self.fc2(hidden)).view(n, tokens, width)


class OPT(nn.Module):
    """A decoder that takes keywords and returns a dict, as those of the library transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(VOCABULARY, 16), nn.Embedding(TOKENS, 16)
        self.layers = nn.ModuleList([DecoderLayer(16, 2), DecoderLayer(16, 2)])
        self.final_layer_norm, self.lm_head = nn.LayerNorm(16), nn.Linear(16, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        tokens = input_ids.shape[1]
        x = self.embed_tokens(input_ids) + self.embed_positions(torch.arange(tokens, device=input_ids.device))
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        mask = causal & attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, mask)
        return {"logits": self.lm_head(self.final_layer_norm(x))}


def opt_inputs() -> dict[str, Tensor]:
    mask = torch.ones(N, TOKENS, dtype=torch.long)
    mask[::2, -2:] = 0  # Every other input is shorter.
    return {"input_ids": torch.randint(VOCABULARY, (N, TOKENS)), "attention_mask": mask}


class Encoder(nn.Module):
    """Has torch's own transformer layers, whose fast path does not call ReLU as a function."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(12, 2, 24, activation="relu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(x).mean(1)))


class Experts(nn.Module):
    """Sends each token through one of three MLPs, which a router chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(12, 3), nn.Linear(12, 5)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen, out = self.router(flat).argmax(-1), torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            out[chosen == index] = expert(flat[chosen == index])
        return cast(Tensor, self.head((flat + out).view_as(x).mean(1)))


NETWORKS = (
    Network("TCN", "locuslab/TCN", TCN, lambda: torch.randn(N, 4, STEPS)),
    Network("RNN (relu)", "torch.nn", ReLURNN, lambda: torch.randn(N, STEPS, 4)),
    Network("RNN (own cell)", "tutorials", CellRNN, lambda: torch.randn(N, STEPS, 4)),
    Network("LSTM with a ReLU head", "tutorials", LSTMHead, lambda: torch.randn(N, STEPS, 4)),
    Network("MLP-Mixer", "timm", Mixer, lambda: torch.randn(N, 3, 16, 16)),
    Network("OPT", "transformers", OPT, opt_inputs),
    Network("Transformer encoder", "torch.nn", Encoder, lambda: torch.randn(N, TOKENS, 12)),
    Network("mixture of experts", "transformers", Experts, lambda: torch.randn(N, TOKENS, 12)),
)
