"""
Texts of unequal length, one behind the other.

Nothing is padded: the rows of a packed batch are the tokens of its texts, and texts of equal length are neighbours, so that attention can take each
such run as one rectangle without copying.

In:  sequences of token ids      Out: rows of ids and positions, and where each run of texts lies
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy
import torch
from torch import Tensor

TILE = 64
"""Rows of a text that a GPU's attention takes at a time."""


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
        ids: [rows] int32; rows beyond the last run belong to no text.
        positions, ends: [rows] int32, each row's place in its text, and the row at which that text ends; 0 both for a row of no text.
        runs: in the order of the rows.
        bounds: [texts + 1] int32, the row at which each text begins, and the last one's end.
        longest: tokens of the longest text.
        tiles: [tiles] int32, the first row of each tile of at most `TILE` rows of one text; or `rows`, for a tile of none.
    """

    ids: Tensor
    positions: Tensor
    ends: Tensor
    runs: tuple[Run, ...]
    bounds: Tensor
    longest: int
    tiles: Tensor

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def is_padded(self) -> bool:
        """Whether there may be rows of no text."""
        return self.tokens < self.rows

    @property
    def tokens(self) -> int:
        return sum(run.texts * run.length for run in self.runs)


def pack(batch: Sequence[Sequence[int]], device: torch.device, rows: int | None = None) -> Packed:
    """Pack texts whose lengths are in order.

    Args:
        batch: token ids; texts of equal length must be neighbours.
        rows: are filled up to so many; None for as many as there are tokens.
    """
    lengths = [len(ids) for ids in batch]
    rows = sum(lengths) if rows is None else rows
    tiles = sum(-(-length // TILE) for length in lengths)
    return _unfolded(padded(batch, rows, len(batch), tiles).to(device), rows, len(batch), tuple(_runs(lengths)), max(lengths))


def fixed(numbers: Tensor, rows: int, texts: int) -> Packed:
    """A batch of a fixed size, which is whatever the array of `padded` holds when it is computed."""
    return _unfolded(numbers, rows, texts, (), rows)


def padded(batch: Sequence[Sequence[int]], rows: int, texts: int, tiles: int) -> Tensor:
    """A batch filled up with rows of no text, texts of no tokens and tiles of no rows: `Packed`'s tensors, one behind the other.

    They are one array, because a way to the device takes as long for a number as for thousands.

    Returns:
        [3 * rows + texts + 1 + tiles] int32, on the CPU.
    """
    numbers = numpy.zeros(3 * rows + texts + 1 + tiles, dtype=numpy.int32)
    ids, positions, ends, bounds, firsts = numpy.split(numbers, [rows, 2 * rows, 3 * rows, 3 * rows + texts + 1])
    lengths = numpy.zeros(texts, dtype=numpy.int32)
    lengths[: len(batch)] = [len(sequence) for sequence in batch]
    numpy.cumsum(lengths, out=bounds[1:])
    tokens = bounds[-1]
    for sequence, start in zip(batch, bounds.tolist(), strict=False):
        ids[start : start + len(sequence)] = sequence
    positions[:tokens] = numpy.arange(tokens) - numpy.repeat(bounds[:-1], lengths)
    ends[:tokens] = numpy.repeat(bounds[1:], lengths)
    found = numpy.flatnonzero(positions[:tokens] % TILE == 0)
    firsts[: len(found)], firsts[len(found) :] = found, rows
    return torch.from_numpy(numbers)


def most_tiles(rows: int, texts: int) -> int:
    """That so many texts may have."""
    return rows // TILE + texts


def _unfolded(numbers: Tensor, rows: int, texts: int, runs: tuple[Run, ...], longest: int) -> Packed:
    ids, positions, ends, bounds, tiles = torch.split(numbers, [rows, rows, rows, texts + 1, len(numbers) - 3 * rows - texts - 1])
    return Packed(ids, positions, ends, runs, bounds, longest, tiles)


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
