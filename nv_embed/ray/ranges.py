"""
Ranges: the rows that one turn of an actor takes.

A range is the next rows in the order of the primary key, and the database hands it out: their jobs come into the queue with a lease. So how far a
re-embedding is stands in the database alone, and a range needs no owner that lives: what is written is no job any more, and what is not is anybody's
when the lease runs out, an ordinary worker's too. When all ranges were handed out, what others have left is taken as a range.

In:  a connection      Out: jobs that are ours for a while
"""

import random
import time
from collections.abc import Callable

from nv_embed.jobs import Generation, Job, Queue, connect
from nv_embed.rows import GIVES_WAY

SHORTEST_LOOK_S, LONGEST_LOOK_S = 0.05, 1.0
"""How long to wait for a range that somebody else hands out just now, or for rows that another one has."""

APPLICATION = "nv-embed ray"
"""What connections call themselves."""

STATE = "SELECT state FROM nv_embed.reembedding WHERE id = %s"

WAITING = "SELECT nv_embed.waiting_before(%s, %s)"


class Ranges:
    """The ranges of one re-embedding.

    Args:
        connected: the queue, over a connection that works.
    """

    def __init__(self, connected: Callable[[], Queue], reembedding: int, generation: int, most: int, lease_s: float) -> None:
        self._connected = connected
        self._reembedding = reembedding
        self._generation = generation
        self._most = most
        self._lease_s = lease_s

    def take(self) -> tuple[Generation, list[Job]] | None:
        """The next range; waits while others have rows that may be left over. None when no row is left that was there before."""
        pause_s, asked_at = SHORTEST_LOOK_S, None
        while (generation := self._open()) is not None:
            jobs, is_last = self._claim()
            if jobs:
                return generation, jobs
            if is_last:
                asked_at = asked_at or self._now()
                if not self._waiting(asked_at):
                    return None
                pause_s = min(pause_s * 2, LONGEST_LOOK_S)
            time.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311 - spreads the load
        return None

    def _open(self) -> Generation | None:
        """The generation, while it is being filled."""
        queue = self._connected()
        row = queue.connection.execute(STATE, [self._reembedding]).fetchone()
        if row is None or row[0] != "backfilling":
            return None
        return next((generation for generation in queue.work() if generation.id == self._generation), None)

    def _claim(self) -> tuple[list[Job], bool]:
        queue = self._connected()
        try:
            jobs, is_last = queue.claim_range(self._generation, self._most, self._lease_s)
        except GIVES_WAY:
            return [], False
        if not jobs and is_last:
            jobs = queue.claim([self._generation], self._most, self._lease_s)
        return jobs, is_last

    def _now(self) -> object:
        row = self._connected().connection.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        return row[0]

    def _waiting(self, moment: object) -> bool:
        row = self._connected().connection.execute(WAITING, [self._generation, moment]).fetchone()
        assert row is not None
        return bool(row[0])


def open_queue(database_url: str) -> Queue:
    return Queue(connect(database_url, application_name=APPLICATION))
