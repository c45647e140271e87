"""
The seam between serving and arithmetic.

An engine turns token ids into pooled vectors and knows nothing of texts, requests or dimensions. One thread calls it, and where its capacity allows
for that, a second one for small batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
from numpy.typing import NDArray

Vectors = NDArray[numpy.float32]


class OutOfMemory(Exception):
    """The device has no room for this batch; a smaller one may fit."""


@dataclass(frozen=True)
class Capacity:
    """What an engine was measured to do when it was loaded.

    Attributes:
        tokens_per_s: its rate, in the unit of `Engine.cost`.
        batch_tokens: the cost that one batch should have: it keeps the device busy, fits its memory and takes no longer than a query may wait.
        most_tokens: the cost that it may have if the device turns out to be faster, because something else kept it busy when it was measured.
        beside_tokens: the cost of a batch that a second thread may have computed beside another one; 0 where one is computed at a time.
    """

    tokens_per_s: float
    batch_tokens: int
    most_tokens: int
    beside_tokens: int = 0


class Engine(Protocol):
    """What computes the vectors."""

    @property
    def width(self) -> int:
        """Components of a vector."""
        ...

    @property
    def device(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def capacity(self) -> Capacity: ...

    def cost(self, tokens: int) -> float:
        """The work that a text of so many tokens is, in tokens of a short one: attention's grows with the square."""
        ...

    def rows(self, lengths: Sequence[int]) -> int:
        """How many tokens the device computes for texts of so many, those included that only fill it up."""
        ...

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Pooled vectors of some sequences of token ids, none of them empty.

        A vector does not depend on what else is in the batch.

        Returns:
            [len(batch), width] float32, not yet normalised, in the order of the batch.
        Raises:
            OutOfMemory: the device has no room for this batch.
        """
        ...

    def rebuild(self) -> None:
        """Load the model anew, in place, after the device or the memory that holds it has failed.

        Raises:
            Exception: it cannot be done; only a new process can help.
        """
        ...
