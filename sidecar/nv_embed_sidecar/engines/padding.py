"""
Texts of unequal length as rectangles.

In:  sequences of token ids      Out: groups worth padding together; ids and mask as tensors
"""

from collections.abc import Iterator, Sequence

import numpy
import torch
from torch import Tensor

MOST_PADDING = 0.1
"""Of a padded batch at most this part may be padding; beyond it, splitting the batch is cheaper."""


def groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of sequences that are worth padding together, longest first."""
    group: list[int] = []
    tokens = longest = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if group and longest * (len(group) + 1) * (1 - MOST_PADDING) > tokens + lengths[position]:
            yield group
            group, tokens = [], 0
        if not group:
            longest = lengths[position]
        group.append(position)
        tokens += lengths[position]
    if group:
        yield group


def pad(batch: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences as one rectangle, filled up on the right.

    Returns:
        ids [n, length] int64 and mask [n, length] bool, True for a real token.
    """
    length = max(map(len, batch))
    ids = numpy.zeros((len(batch), length), dtype=numpy.int64)
    mask = numpy.zeros((len(batch), length), dtype=numpy.bool_)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
