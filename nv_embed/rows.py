"""
The rows of jobs: what they read, and what is written to them.

Whose fault it is that the database refuses is decided by its SQLSTATE: it is in trouble, or the table is at fault, or else one of the rows, which is
found by halves and tried again later, some times. Rows that somebody holds are tried again a moment later, and left to the queue after that.

In:  jobs, and vectors of their texts      Out: texts; vectors in the user's tables
"""

import random
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, compress
from typing import NamedTuple, TypeVar

import numpy
import psycopg
from numpy.typing import NDArray

from nv_embed.counts import Counts
from nv_embed.errors import EmbedError
from nv_embed.jobs import Generation, Job, Queue, Text
from nv_embed.limits import MAX_TEXT_BYTES
from nv_embed.slices import Slices

SHORTEST_RETRY_S, LONGEST_RETRY_S = 5.0, 3600.0

MOST_ATTEMPTS = 5
"""Of a text on which the engine fails, or of a row that its table does not let be written."""

WRITE_TRIES = 5
"""Of a batch whose writing met another transaction."""

HELD_PAUSES_S = (0.02, 0.05, 0.1)
"""Before each further try to write to rows that somebody holds."""

GIVES_WAY = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable)
"""What another transaction did; trying again is all there is to do."""

TROUBLE = ("08", "25006", "40", "53", "55P03", "57P", "58")
"""How the SQLSTATEs begin of a connection, a transaction or a server in trouble, whatever is read or written."""

OF_TABLE = ("3F", "42")
"""How those begin that say the same of every row: a right is missing, or a column."""

Vectors = NDArray[numpy.float32]
R = TypeVar("R")


class Refused(Exception):
    """A table cannot be read or written at all: a right is missing, or a column."""

    def __init__(self, generation: Generation, error: psycopg.Error) -> None:
        super().__init__(f"{generation.relation}: {first_line(error)}")
        self.generation = generation


class Outcome(NamedTuple):
    """Of rows that were to be written: how many are done, and how many somebody held all the time. Those are due again in a second, or where it is
    their job that was held when its lease is over."""

    settled: int
    held: int


class Rows:
    """Reads and writes over one connection.

    Args:
        counts: what is done is added here.
        slices: how many rows to write at once.
        pause: waits for so many seconds, or less when the worker is to end.
    """

    def __init__(self, queue: Queue, counts: Counts, slices: Slices, pause: Callable[[float], None]) -> None:
        self._queue = queue
        self._counts = counts
        self._slices = slices
        self._pause = pause

    def read(self, generation: Generation, jobs: Sequence[Job]) -> list[Text]:
        """What rows read, but for those that cannot be read, which fail.

        Raises:
            Refused: the table cannot be read.
        """
        texts: list[Text] = []

        def read(part: slice) -> None:
            texts.extend(self._queue.read(generation.id, jobs[part], MAX_TEXT_BYTES))

        self._by_rows(generation, jobs, read)
        return texts

    def write(self, generation: Generation, texts: Sequence[Text], vectors: Vectors) -> Outcome:
        """Write the vectors of all passages of the texts, [n, dim] of unit length.

        Rows that somebody holds are tried again: their vectors are there, and a lane that writes another generation's is done in a moment.

        Raises:
            Refused: the table cannot be written.
        """
        settled, held = self._write_slices(generation, texts, vectors, self._slices.wrote)
        for pause_s in HELD_PAUSES_S:
            if not held:
                break
            self._pause(pause_s)
            is_held = [place in held for place in range(len(texts))]
            vectors = vectors[numpy.repeat(is_held, [len(text.passages) for text in texts])]
            texts = list(compress(texts, is_held))
            # A few rows tell nothing of how many may be written at once.
            more, held = self._write_slices(generation, texts, vectors, lambda *_: None)
            settled += more
        return Outcome(settled, len(held))

    def give_up(self, generation: Generation, text: Text, error: EmbedError) -> None:
        """A row fails for good, and loses its vector.

        Raises:
            Refused: the table cannot be written.
        """

        def give_up(_: slice) -> None:
            failed = _in_turn(lambda: self._queue.give_up(generation.id, [text], type(error).__name__, [str(error)]))
            self._counts.add(generation.id, failed=failed)

        self._by_rows(generation, [text.job], give_up, f"{error}; its vector cannot be taken away: ")

    def try_later(self, job: Job, error: str, message: str) -> None:
        retry_in_s = min(SHORTEST_RETRY_S * 2**job.attempts, LONGEST_RETRY_S) * random.uniform(1, 1.5)  # noqa: S311 - spreads the load
        self._queue.fail(job.generation, [job], error, [message], retry_in_s)

    def _write_slices(
        self, generation: Generation, texts: Sequence[Text], vectors: Vectors, wrote: Callable[[int, int, float], None]
    ) -> tuple[int, set[int]]:
        """How many are done, and the places of those that somebody holds.

        Args:
            wrote: is told how many rows took how many seconds.
        """
        ends = [0, *accumulate(len(text.passages) for text in texts)]
        settled, held, begin = 0, set[int](), 0
        while begin < len(texts):
            end = begin + self._slices.rows(generation.id, len(texts) - begin)
            begun = time.monotonic()
            done, left = self._write_at_once(generation, texts[begin:end], vectors[ends[begin] : ends[end]])
            wrote(generation.id, end - begin, time.monotonic() - begun)
            settled += done
            held |= {begin + place for place in left}
            begin = end
        return settled, held

    def _write_at_once(self, generation: Generation, texts: Sequence[Text], vectors: Vectors) -> tuple[int, list[int]]:
        ends = [0, *accumulate(len(text.passages) for text in texts)]
        settled, held = 0, list[int]()

        def write(part: slice) -> None:
            nonlocal settled
            written = _in_turn(lambda: self._queue.write_back(generation, texts[part], vectors[ends[part.start] : ends[part.stop]]))
            self._counts.add(generation.id, embedded=written.settled)
            settled += written.settled
            held.extend(part.start + place for place in written.unsettled)

        self._by_rows(generation, [text.job for text in texts], write)
        return settled, held

    def _by_rows(self, generation: Generation, jobs: Sequence[Job], do: Callable[[slice], None], said: str = "") -> None:
        """Do something with rows at once, or find those which their table does not let it be done with.

        Args:
            do: takes the places of some of the jobs.
            said: of such a row, before what the database says of it.
        Raises:
            Refused: it is the table, not a row.
        """
        parts = [slice(0, len(jobs))]
        while parts:
            part = parts.pop()
            try:
                do(part)
            except psycopg.Error as error:
                if is_trouble(error):
                    raise
                if _is_of_table(error):
                    raise Refused(generation, error) from error
                if part.stop - part.start == 1:
                    self._refuse_row(jobs[part.start], type(error).__name__, said + first_line(error))
                else:
                    half = (part.start + part.stop) // 2
                    parts += [slice(half, part.stop), slice(part.start, half)]

    def _refuse_row(self, job: Job, error: str, message: str) -> None:
        """A trigger or a constraint of the table says no. It would to taking the old vector away too, so that stays, though the row fails."""
        if job.attempts + 1 < MOST_ATTEMPTS:
            self.try_later(job, error, message)
        else:
            self._queue.fail(job.generation, [job], error, [message], None)
            self._counts.add(job.generation, failed=1)


def is_trouble(error: psycopg.Error) -> bool:
    """Whether neither a row nor its table is at fault. What has no SQLSTATE is libpq's, of a connection that broke."""
    return error.sqlstate is None or error.sqlstate.startswith(TROUBLE)


def first_line(error: psycopg.Error) -> str:
    said = error.diag.message_primary or str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _is_of_table(error: psycopg.Error) -> bool:
    return error.sqlstate is not None and error.sqlstate.startswith(OF_TABLE)


def _in_turn(write: Callable[[], R]) -> R:
    """Again, where it met another transaction."""
    for _ in range(WRITE_TRIES - 1):
        try:
            return write()
        except GIVES_WAY:
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - so that the two do not meet again
    return write()
