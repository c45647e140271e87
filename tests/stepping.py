"""
The scheduler with engines whose batches a test starts and ends.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue

import numpy
from nv_embed_sidecar.engines import Capacity, Vectors
from nv_embed_sidecar.queues import Limits
from nv_embed_sidecar.scheduler import Patience, Scheduler

from nv_embed.errors import Unavailable

WAIT_S = 10.0
BATCH_TOKENS = 8
LIMITS = Limits(texts=100, cost=1000, requests=20)
AT_ONCE = Patience(rebuild_pauses_s=(0.0, 0.0, 0.0))

Verdict = BaseException | Vectors | None
PROBE = [[0]]


class SteppedEngine:
    """Every batch is shown to the test and waits until the test lets it go. A vector holds its text's first id and its length."""

    width = 2
    device = "cpu"
    precision = "fp32"
    capacity = Capacity(tokens_per_s=1000, batch_tokens=BATCH_TOKENS, most_tokens=BATCH_TOKENS)

    def __init__(self) -> None:
        self._begun: SimpleQueue[list[list[int]]] = SimpleQueue()
        self._verdicts: SimpleQueue[Verdict] = SimpleQueue()
        self.rebuilds: SimpleQueue[None] = SimpleQueue()

    def cost(self, tokens: int) -> float:
        return tokens

    def rows(self, lengths: Sequence[int]) -> int:
        return sum(lengths)

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        self._begun.put([list(ids) for ids in batch])
        verdict = self._verdicts.get()
        if isinstance(verdict, BaseException):
            raise verdict
        return numpy.array([[ids[0], len(ids)] for ids in batch], dtype=numpy.float32) if verdict is None else verdict

    def rebuild(self) -> None:
        self.rebuilds.put(None)

    def begun(self) -> list[list[int]]:
        """The batch that the engine has just been given."""
        return self._begun.get(timeout=WAIT_S)

    def is_idle(self) -> bool:
        return self._begun.empty()

    def go_on(self, verdict: Verdict = None) -> None:
        self._verdicts.put(verdict)

    def step(self, verdict: Verdict = None) -> list[list[int]]:
        batch = self.begun()
        self.go_on(verdict)
        return batch


class Health:
    def __init__(self) -> None:
        self.heard: SimpleQueue[bool] = SimpleQueue()

    def __call__(self, healthy: bool) -> None:
        self.heard.put(healthy)

    def next(self) -> bool:
        return self.heard.get(timeout=WAIT_S)


@contextmanager
def running(scheduler: Scheduler, *engines: SteppedEngine) -> Iterator[Scheduler]:
    scheduler.start()
    yield scheduler
    for engine in engines:
        for _ in range(100):
            engine.go_on()
    scheduler.close()


def text(name: int, length: int = 4) -> list[int]:
    return [name] * length


def names(future: "Future[Vectors]") -> list[int]:
    return [int(row[0]) for row in future.result(WAIT_S)]


def refuses(scheduler: Scheduler, engine: SteppedEngine) -> bool:
    try:
        scheduler.check(engine, 1, interactive=False)
    except Unavailable:
        return True
    return False


def occupy(scheduler: Scheduler, engine: SteppedEngine) -> "Future[Vectors]":
    """Keep the engine busy with one batch, so that what comes now has to queue."""
    busy = scheduler.submit(engine, [text(99)], interactive=False)
    assert engine.begun() == [text(99)]
    return busy
