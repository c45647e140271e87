"""
How many calls may be under way.

Each holds a thread, be it only to wait for its turn, so there are so many and no more. Of four or more one client may have three quarters: the queue
is fair to whoever gets into it, and the last quarter is for those who have fewer calls under way than that.

In:  who calls      Out: a place, or a refusal
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Full(Exception):
    """There is no place left, or none for this client.

    Attributes:
        whose: " of this client", or nothing.
    """

    def __init__(self, whose: str) -> None:
        super().__init__()
        self.whose = whose


class Places:
    """May be used by any thread.

    Args:
        most: how many there are.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_of_one = most - most // 4
        self._taken: Counter[str] = Counter()
        # A stream that nobody holds any more may be collected, and give its place back, wherever this thread is.
        self._lock = threading.RLock()

    @contextmanager
    def taken(self, client: str) -> Iterator[None]:
        """Take one.

        Raises:
            Full
        """
        with self._lock:
            if self._taken.total() >= self._most:
                raise Full("")
            if self._taken[client] >= self._most_of_one:
                raise Full(" of this client")
            self._taken[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[client] -= 1
                if not self._taken[client]:
                    del self._taken[client]
