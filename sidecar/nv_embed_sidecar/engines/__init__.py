"""
The seam between serving and arithmetic.

An engine turns token ids into pooled vectors and knows nothing of texts, requests or dimensions. One thread calls it, so it need not be thread-safe.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy
from numpy.typing import NDArray

Vectors = NDArray[numpy.float32]


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

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        """Pooled vectors of some sequences of token ids, none of them empty.

        Returns:
            [len(batch), width] float32, not yet normalised, in the order of the batch.
        """
        ...
