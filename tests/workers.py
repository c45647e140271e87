"""
Workers in this process, for tests.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nv_embed.worker import Settings, Worker


@contextmanager
def working(dsn: str, endpoint: str, **settings: Any) -> Iterator[Worker]:
    """A worker that works until the block ends."""
    running = Worker(Settings(dsn, (endpoint,), **{"poll_s": 0.5, "timeout_s": 20.0, **settings}))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(60)
        assert not thread.is_alive()


def drain(dsn: str, endpoint: str, **settings: Any) -> Worker:
    """A worker that ends when nothing is due."""
    running = Worker(Settings(dsn, (endpoint,), **{"timeout_s": 20.0, **settings}, once=True))
    running.run()
    return running
