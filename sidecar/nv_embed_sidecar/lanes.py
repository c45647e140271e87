"""
One engine as the scheduler sees it.

A lane knows how fast its engine is, how much a batch may hold, and whether the engine works. The rate begins with what the engine was measured to do
when it was loaded and follows the batches that were computed since; where it proves higher, batches grow. Memory that runs out halves what a batch
may hold, and batches that fit win it back by small steps, because another program may have taken the memory for a while.

In:  batches that were computed or failed      Out: seconds for some work, the cost a batch may have
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy

from nv_embed_sidecar.engines import Engine, Vectors

# Of each batch's rate, in the running mean.
NEWS = 0.2
# Full batches until a budget that was halved to nothing is whole again.
RECOVERY_BATCHES = 200

SIMPLEST = ((0,),)


@dataclass(eq=False)
class Lane:
    """An engine, its pace and its state.

    Attributes:
        rate: cost it computes in a second.
        budget: cost that a batch may have; one text alone may have more.
        broken: it computes nothing until it is rebuilt.
        rebuilds: tries to rebuild it since it last computed a batch.
        retry_at: `time.monotonic()` of the next try.
    """

    engine: Engine
    batch_tokens: int | None = None
    rebuilds: int = 0
    broken: bool = field(init=False)
    retry_at: float = field(init=False)
    rate: float = field(init=False)
    budget: float = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """What the engine says of itself, as after loading."""
        self.broken = False
        self.retry_at = math.inf
        self.rate = self.engine.capacity.tokens_per_s
        self.budget = self._nominal()

    def costs(self, ids: Sequence[Sequence[int]]) -> list[float]:
        return [self.engine.cost(len(text)) for text in ids]

    def seconds(self, cost: float) -> float:
        """How long some work takes."""
        return cost / self.rate

    def batch_s(self) -> float:
        """How long a full batch takes."""
        return self.seconds(self.budget)

    def budget_beside(self) -> float:
        """The cost that a batch may have which is computed beside another one."""
        return min(self.budget, self.engine.capacity.beside_tokens)

    def computed(self, cost: float, seconds: float) -> None:
        """Learn from a batch. A small one says more of the way to the device than of its speed."""
        self.rebuilds = 0
        if cost < self.budget / 2:
            return
        self.rate += NEWS * (cost / max(seconds, 1e-6) - self.rate)
        self.budget = min(self.budget + self._nominal() / RECOVERY_BATCHES, self._nominal())

    def halve(self, cost: float) -> None:
        """A batch of this cost did not fit."""
        self.budget = min(self.budget, cost) / 2

    def encode(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """As the engine does, and its answer has the shape that was asked for."""
        vectors = self.engine.encode(ids)
        if vectors.shape != (len(ids), self.engine.width):
            raise ValueError(f"the engine answered {vectors.shape} for {len(ids)} texts at width {self.engine.width}")
        return vectors

    def probe(self) -> None:
        """Find out whether the engine can compute at all: one bad text must not look like a dead device.

        Raises:
            Exception: it cannot.
        """
        if not numpy.isfinite(self.encode(SIMPLEST)).all():
            raise FloatingPointError("the engine computes vectors that are not finite")

    def _nominal(self) -> float:
        """What a batch should hold: more than was measured where the engine proves faster than it was then."""
        capacity = self.engine.capacity
        faster = max(self.rate / capacity.tokens_per_s, 1.0)
        return self.batch_tokens or min(capacity.batch_tokens * faster, capacity.most_tokens)
