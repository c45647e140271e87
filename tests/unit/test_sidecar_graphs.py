"""
Batches of a fixed size, which a GPU's recordings want: here what is recorded is computed anew each time, on the CPU.
"""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nv_embed_sidecar.engines.graphs import ROWS, TEXTS, Compute, Graphs
from nv_embed_sidecar.engines.packing import Packed
from nv_embed_sidecar.engines.torch_device import TorchDevice
from torch import Tensor

CPU = TorchDevice(torch.device("cpu"), "fp32", 1)
BATCHES = st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=90), min_size=1, max_size=11)


def sums(packed: Packed) -> Tensor:
    """Of each row: its token, its place, and the sum of its text, which it shares with no other text."""
    texts = torch.bucketize(torch.arange(packed.rows), packed.bounds[1:], right=True)
    of_texts = torch.zeros(len(packed.bounds) + 1).index_add(0, texts, packed.ids.float())
    return torch.stack([packed.ids.float(), packed.positions.float(), of_texts[texts]], dim=1)


def again(compute: Compute) -> Compute:
    """Like a recording it computes from the memory that it knew at first, and writes to the same place each time."""
    place = compute()

    def play() -> Tensor:
        return place.copy_(compute())

    return play


GRAPHS = Graphs(sums, CPU, again)


@given(st.lists(BATCHES, min_size=1, max_size=4))
def test_a_batch_that_is_filled_up_computes_what_it_does_otherwise(batches: Sequence[list[list[int]]]) -> None:
    for batch in batches:
        recording = GRAPHS.find(len(batch), sum(map(len, batch)))
        assert recording is not None
        hidden, bounds = recording(batch)
        packed = CPU.pack(batch)
        assert torch.equal(hidden, sums(packed)[: packed.tokens])
        assert torch.equal(bounds, packed.bounds)


@pytest.mark.parametrize(("tokens", "rows"), [(1, ROWS[0]), (ROWS[0], ROWS[0]), (ROWS[0] + 1, ROWS[1]), (ROWS[-1], ROWS[-1])])
def test_the_smallest_recording_with_room_is_played(tokens: int, rows: int) -> None:
    recording = GRAPHS.find(1, tokens)
    assert recording is not None
    assert recording.packed.rows == rows


def test_larger_batches_are_not_played() -> None:
    assert GRAPHS.find(TEXTS, 100) is not None
    assert GRAPHS.find(TEXTS + 1, 100) is None
    assert GRAPHS.find(1, ROWS[-1] + 1) is None


def test_a_recording_that_computes_something_else_is_not_taken() -> None:
    with pytest.raises(ArithmeticError, match="something else"):
        Graphs(sums, CPU, lambda compute: lambda: 1.1 * compute())


def test_a_model_that_reads_what_a_recording_does_not_have_is_not_recorded() -> None:
    with pytest.raises(ArithmeticError, match="something else"):
        Graphs(lambda packed: sums(packed) * len(packed.runs), CPU, again)
