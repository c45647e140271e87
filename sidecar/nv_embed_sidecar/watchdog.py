"""
Notices work that does not end.

A device that hangs holds its thread in a call that no exception ends. A second thread therefore counts ticks while one piece of work is under way. It
counts its own ticks and does not look at the clock, so that a process that was stopped and goes on, or a machine that slept, is not taken for a
device that hangs.

In:  pieces of work and how long each may take      Out: one call, from the watchdog's thread, when one takes longer
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

TICKS = 10
LONGEST_TICK_S = 1.0


@dataclass(frozen=True, eq=False)
class _Work:
    limit_s: float


class Watchdog:
    """Watches one piece of work at a time.

    Args:
        shortest_s: the least that anything may take.
        on_hang: called once, when some work takes longer than it may.
    """

    def __init__(self, shortest_s: float, on_hang: Callable[[], None]) -> None:
        self._tick_s = min(shortest_s / TICKS, LONGEST_TICK_S)
        self._on_hang = on_hang
        self._work: _Work | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    @contextmanager
    def over(self, limit_s: float) -> Iterator[None]:
        """Watch over what is done inside."""
        self._work = _Work(limit_s)
        try:
            yield
        finally:
            self._work = None

    def _run(self) -> None:
        seen: _Work | None = None
        ticks = 0
        while not self._closed.wait(self._tick_s):
            work = self._work
            ticks = ticks + 1 if work is seen else 0
            seen = work
            if work is not None and ticks > math.ceil(work.limit_s / self._tick_s):
                self._on_hang()
                return
