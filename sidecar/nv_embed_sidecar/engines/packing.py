"""
Texts of unequal length, one behind the other.

Nothing is padded: the rows of a packed batch are the tokens of its texts, and texts of equal length are neighbours, so that attention can take each
such run as one rectangle without copying.

In:  sequences of token ids      Out: rows of ids and positions, and where each run of texts lies
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy
import torch
from torch import Tensor


@dataclass(frozen=True)
class Run:
    """Neighbouring texts of one length: rows [start, start + texts * length)."""

    start: int
    texts: int
    length: int

    def split(self, most_texts: int) -> Iterator["Run"]:
        """The run in parts of 1, 2, 4, … texts: kernels are made once a shape, and so there are few shapes."""
        start, left = self.start, self.texts
        while left:
            texts = 1 << (min(left, most_texts).bit_length() - 1)
            yield Run(start, texts, self.length)
            start, left = start + texts * self.length, left - texts


@dataclass(frozen=True)
class Packed:
    """A packed batch.

    Attributes:
        ids, positions: [rows] int64; rows beyond the last run belong to no text.
        runs: in the order of the rows.
        bounds: [texts + 1] int32, the row at which each text begins, and the last one's end.
    """

    ids: Tensor
    positions: Tensor
    runs: tuple[Run, ...]
    bounds: Tensor

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return sum(run.texts * run.length for run in self.runs)

    @property
    def longest(self) -> int:
        return max(run.length for run in self.runs)


def pack(batch: Sequence[Sequence[int]], device: torch.device, multiple: int) -> Packed:
    """Pack texts whose lengths are in order.

    Args:
        batch: token ids; texts of equal length must be neighbours.
        multiple: rows are filled up to a multiple of it.
    """
    lengths = [len(ids) for ids in batch]
    starts = [0, *accumulate(lengths)]
    rows = -(-starts[-1] // multiple) * multiple
    ids = numpy.zeros(rows, dtype=numpy.int64)
    positions = numpy.zeros(rows, dtype=numpy.int64)
    for sequence, start, end in zip(batch, starts, starts[1:], strict=False):
        ids[start:end] = sequence
        positions[start:end] = numpy.arange(end - start)
    return Packed(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(positions).to(device),
        tuple(_runs(lengths)),
        torch.tensor(starts, dtype=torch.int32, device=device),
    )


def _runs(lengths: Sequence[int]) -> Iterator[Run]:
    start = 0
    for length, equal in groupby(lengths):
        texts = len(list(equal))
        yield Run(start, texts, length)
        start += texts * length


def pieces(lengths: Sequence[int], count: int, cost: Callable[[int], float]) -> list[list[int]]:
    """Positions of texts in at most `count` pieces of nearly equal cost, each in the order of length.

    The longest text goes first, and each to the piece that is least loaded.
    """
    loads = [0.0] * min(count, len(lengths))
    parts: list[list[int]] = [[] for _ in loads]
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        least = loads.index(min(loads))
        loads[least] += cost(lengths[position])
        parts[least].append(position)
    return parts
