"""
A thread that has an engine compute, one thing after the other, with a watchdog over each.

In:  a function that does what is next      Out: one call, if the thread dies or hangs
"""

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from nv_embed_sidecar.watchdog import Watchdog

log = logging.getLogger(__name__)

LAST_CALLS = 3
"""Of the stack of a thread that hangs, for the log."""


class Worker:
    """One thread.

    Args:
        step: does what is next, and holds nothing of it afterwards; returns False at the end.
        shortest_s: the least that anything may take.
        on_death: called once, with the reason, when the thread will do nothing any more, though nobody has ended it.
    """

    def __init__(self, name: str, step: Callable[[], bool], shortest_s: float, on_death: Callable[[str], None]) -> None:
        self._step = step
        self._on_death = on_death
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._watchdog = Watchdog(shortest_s, self._hangs)

    def start(self) -> None:
        self._thread.start()
        self._watchdog.start()

    def close(self) -> None:
        """Stop watching."""
        self._watchdog.close()

    def over(self, limit_s: float) -> AbstractContextManager[None]:
        """Watch over what the thread does inside."""
        return self._watchdog.over(limit_s)

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # whatever ends this thread must be seen: nobody else does its work
            log.critical("the thread '%s' has died", self._thread.name, exc_info=True)
            self._on_death(f"the engine's thread has died of {type(error).__name__}")

    def _hangs(self) -> None:
        frame = sys._current_frames().get(self._thread.ident or 0)
        places = ", ".join(f"{Path(place.filename).name}:{place.lineno} {place.name}" for place in traceback.extract_stack(frame)[-LAST_CALLS:])
        log.critical("the thread '%s' hangs in %s", self._thread.name, places)
        self._on_death("the engine hangs")
