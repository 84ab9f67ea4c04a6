"""DataLoaders of torch join GateBits to batches."""

from __future__ import annotations

import pytest
import torch
from packing_problems import mixed_bits
from torch.utils.data import DataLoader, Dataset, StackDataset, Subset, TensorDataset, default_collate

from gatedops import GateBits

BITS, X = mixed_bits(9), torch.rand(9, 5)


class Pairs(Dataset):
    """A pair of inputs and their gates."""

    def __init__(self, x: torch.Tensor, bits: GateBits) -> None:
        self.x, self.bits = x, bits

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"x": self.x[index], "gates": self.bits[index], "index": index}


def test_rows_collate_to_the_gates_of_the_batch():
    batch = default_collate([(X[i], BITS[i], i) for i in (4, 0, 7)])
    assert isinstance(batch[1], GateBits)
    assert batch[1] == BITS[[4, 0, 7]]
    assert torch.equal(batch[0], X[[4, 0, 7]])
    assert batch[2].tolist() == [4, 0, 7]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_a_data_set_with_gates(workers):
    for batch in DataLoader(Pairs(X, BITS), batch_size=4, num_workers=workers):
        assert batch["gates"] == BITS[batch["index"]]
        assert torch.equal(batch["x"], X[batch["index"]])


def test_gates_are_a_data_set():
    batches = list(DataLoader(BITS, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 1]
    assert GateBits.cat(batches) == BITS
    assert GateBits.cat(list(DataLoader(Subset(BITS, [8, 2]), batch_size=2))) == BITS[[8, 2]]
    for pairs in (StackDataset(X, BITS), TensorDataset(X, BITS)):
        for x, gates in DataLoader(pairs, batch_size=9):
            assert gates == BITS
            assert torch.equal(x, X)


def test_a_tensor_dataset_shuffles_gates_with_their_labels():
    labels = torch.arange(9)
    for gates, rows in DataLoader(TensorDataset(BITS, labels), batch_size=4, shuffle=True):
        assert gates == BITS[rows]
    with pytest.raises(AssertionError, match="Size mismatch"):
        TensorDataset(BITS, labels[:8])


def test_gates_have_one_axis():
    assert BITS.size() == (9,)
    assert BITS.size(0) == BITS.size(-1) == 9
    with pytest.raises(IndexError):
        BITS.size(1)


def test_rows_of_other_layers_do_not_collate():
    with pytest.raises(ValueError, match=r"parts\[1\]: has 1 layer, parts\[0\] has 4"):
        default_collate([BITS[0], BITS["a"][0]])
