"""
One lane of a worker: a thread's whole way from jobs to written vectors.

Claim, read, embed with no transaction open, write back. What becomes of texts whose call failed is decided by the error's class (`errors.py`):

- the text is at fault: its row fails, alone, and the others of the batch are sent again without it;
- the engine failed: the batch is divided until the text is alone, which is tried again later, some times;
- the sidecar refuses, or is away: nobody is at fault. The jobs go back as they were, and the lane waits.

What becomes of rows that the database refuses is decided by its SQLSTATE (`rows.py`).

In:  a database's jobs, a sidecar      Out: vectors in the user's tables
"""

import logging
import random
import threading
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import NamedTuple

import numpy
import psycopg

from nv_embed.client import Client
from nv_embed.counts import Counts
from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, Unauthenticated, Unavailable
from nv_embed.jobs import Generation, Job, Queue, Text
from nv_embed.limits import MAX_TEXT_BYTES
from nv_embed.rows import GIVES_WAY, MOST_ATTEMPTS, Refused, Rows, Vectors, first_line, is_trouble
from nv_embed.slices import WRITE_S, Slices
from nv_embed.tracing import Tracing

log = logging.getLogger(__name__)

FEWEST_JOBS, MOST_JOBS = 8, 1000
"""Of a batch: what a batch costs by itself is shared by many."""

FIRST_JOBS = 128

BATCH_S = 4.0
"""What a batch of a slow model may take: a worker that is told to stop is done soon."""

REST_S = 0.25
"""How long jobs of generations that nobody reads are left to gather, and backfills of so many rows a second: each batch costs the database something,
which those who use it meanwhile would notice. Where there is more to do than a batch, jobs are not left."""

HELD_S = 1.0
"""After how long `settle_or_release` has a row's job tried again that somebody held."""

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0

SERVED_S = 10.0
"""How long to believe what models a sidecar serves."""

EXCLUDED_S = 30.0
"""How long to leave a table alone that cannot be read or written at all."""


class Space(NamedTuple):
    """What vectors can be made with."""

    model: str
    revision: str
    dim: int


class Kind(NamedTuple):
    """What texts of one call have in common."""

    model: str
    revision: str
    dim: int
    truncate: str

    @property
    def space(self) -> Space:
        return Space(self.model, self.revision, self.dim)


class Pace:
    """How often the lanes of a worker, all together, go on with backfills of so many rows a second: each look costs those something whom the limit is
    to spare."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at = 0.0

    def take(self, now: float) -> bool:
        """Whether it is time, for one lane."""
        with self._lock:
            is_due = now >= self._next_at
            if is_due:
                self._next_at = now + REST_S
            return is_due


class Lane:
    """One thread's work.

    Attributes:
        held: jobs that are leased just now.

    Args:
        connect: opens a connection in autocommit mode.
        pause: waits for so many seconds, or less when the worker is to end.
        counts: what is done is added here.
        pace: of the lanes of this worker, at backfills of so many rows a second.
        patience_s: how long to try while the sidecar or the database is away; None is for ever.
        tracing: makes a span of each batch, which its calls are a part of.
        write_s: what writing some rows at once may take.
    """

    def __init__(
        self,
        connect: Callable[[], Queue],
        client: Client,
        lease_s: float,
        pause: Callable[[float], None],
        counts: Counts,
        pace: Pace,
        patience_s: float | None = None,
        tracing: Tracing | None = None,
        write_s: float = WRITE_S,
    ) -> None:
        self.client = client
        self._connect = connect
        self._pace = pace
        self._lease_s = lease_s
        self._pause = pause
        self._counts = counts
        self._patience_s = patience_s
        self._tracing = tracing or Tracing()
        self._slices = Slices(write_s)
        self._queue: Queue | None = None
        self._served: tuple[float, set[Space]] = (0.0, set())
        self._excluded: dict[int, float] = {}
        self._most = FIRST_JOBS
        self._turn = 0
        # Which generation was asked first for jobs.
        self._first: int | None = None
        self._troubles = 0
        self._well = time.monotonic()
        # Jobs of a connection that broke, which are given back over the next one.
        self._left: list[Job] = []
        self._gathers_until = 0.0
        # When the next step of a backfill is due that goes by so many rows a second.
        self._paced_until = 0.0
        # When rows that somebody held are due again.
        self._due_at = 0.0
        self._settled_at = time.monotonic()
        self.held: list[Job] = []

    @property
    def rest_s(self) -> float | None:
        """How long until there is something to do that is known of: jobs left to gather, a step of a backfill, rows that somebody holds. None where
        there is none."""
        known = [at for at in (self._gathers_until, self._paced_until, self._due_at) if at]
        return max(min(known) - time.monotonic(), 0.0) if known else None

    def close(self) -> None:
        if self._queue is not None:
            self._queue.connection.close()
            self._queue = None

    def step(self, call: Callable[[], None] = lambda: None) -> bool:
        """Do one batch. Returns whether there was any.

        Args:
            call: called as soon as there is more than this lane takes, so that others help.
        Raises:
            EmbedError, psycopg.Error: what was away for longer than `patience_s`.
        """
        try:
            return self._attempt(lambda: self._step(call))
        except Refused as refused:
            log.error("%s: left alone for %d s", refused, EXCLUDED_S)
            self._excluded[refused.generation.id] = time.monotonic() + EXCLUDED_S
        return True

    def fill(self, generation: Generation, jobs: Sequence[Job]) -> None:
        """Do jobs that the caller has claimed, as far as they are still leased: what another one has is not embedded twice.

        Raises:
            EmbedError, psycopg.Error: what was away for longer than `patience_s`.
            Refused: the table cannot be read or written.
        """
        self._attempt(lambda: self._fill(generation, jobs))

    def begin(self) -> None:
        """Have its patience start anew: it was idle."""
        self._well = time.monotonic()

    @property
    def _rows(self) -> Rows:
        assert self._queue is not None
        return Rows(self._queue, self._counts, self._slices, self._pause)

    @property
    def most(self) -> int:
        """How many jobs it takes at a time."""
        return self._most

    def _attempt(self, work: Callable[[], bool]) -> bool:
        try:
            found = work()
            self._troubles, self._well = 0, time.monotonic()
            return found
        except EmbedError as error:
            self._wait_for_sidecar(error)
        except Refused:
            self._give_back()
            raise
        except psycopg.Error as error:
            log.warning("the database: %s", first_line(error))
            self._left += self.held
            self.held = []
            self.close()
            self._wait(error, None)
        finally:
            self.held = []
        return True

    def _connected(self) -> Queue:
        if self._queue is None:
            self._queue = self._connect()
            self._queue.release(self._left)
            self._left = []
        return self._queue

    def _fill(self, generation: Generation, jobs: Sequence[Job]) -> bool:
        begun_ns = time.time_ns()
        lost = {job.id for job in self._connected().release(jobs, self._lease_s)}
        self.held = [job for job in jobs if job.id not in lost]
        generations = {generation.id: generation}
        self._counts.claim(self.held, generations)
        self._do(self.held, generations, begun_ns)
        return True

    def _step(self, call: Callable[[], None]) -> bool:
        writable = self._writable(self._connected().work())
        backfilling = [generation for generation in writable if generation.is_backfilling]
        # Queueing and cutting ask no model, so it need not be served, nor need there be a sidecar.
        try:
            generations = {generation.id: generation for generation in self._served_of(writable)}
        except EmbedError:
            if not self._backfill(backfilling):
                raise
            call()
            return True
        begun_ns = time.time_ns()
        jobs = self._look(generations)
        is_full = len(jobs) == self._most
        if is_full:
            call()
        if jobs:
            self._do(jobs, generations, begun_ns)
        # Where there is more than a lane takes, it is for a generation that was asked first for jobs and has none: else rows that come faster than
        # they are embedded would hold it up for ever.
        has_none = {self._first} - {job.generation for job in jobs}
        if self._backfill([generation for generation in backfilling if not is_full or generation.id in has_none]):
            call()
            return True
        return bool(jobs)

    def _do(self, jobs: Sequence[Job], generations: dict[int, Generation], begun_ns: int) -> None:
        relations = sorted({generations[job.generation].relation for job in jobs})
        with self._tracing.span("batch", begun_ns, rows=len(jobs), relations=relations):
            self._tracing.record("claim", begun_ns, rows=len(jobs))
            self._read_and_embed(jobs, generations)

    def _read_and_embed(self, jobs: Sequence[Job], generations: dict[int, Generation]) -> None:
        begun = time.monotonic()
        by_kind: dict[Kind, list[Text]] = defaultdict(list)
        for id, group in groupby(jobs, key=lambda job: job.generation):
            generation = generations[id]
            by_kind[Kind(generation.model, generation.revision, generation.dim, generation.truncate)] += self._read(generation, list(group))
        for kind, texts in by_kind.items():
            self._embed(kind, texts, generations)
        self._adapt(len(jobs), time.monotonic() - begun)

    def _writable(self, generations: Sequence[Generation]) -> list[Generation]:
        """Those whose tables can be written, as far as is known."""
        now = time.monotonic()
        return [generation for generation in generations if self._excluded.get(generation.id, 0.0) < now]

    def _served_of(self, generations: Sequence[Generation]) -> list[Generation]:
        """Those whose model the sidecar has, at their dimensions."""
        now = time.monotonic()
        if generations and now > self._served[0]:
            self._served = (now + SERVED_S, served_by(self.client))
            for generation in generations:
                if space_of(generation) not in self._served[1]:
                    log.warning(
                        "%s waits for model %s, revision %s, at %d dimensions, which this sidecar does not serve",
                        generation.relation,
                        generation.model,
                        generation.revision,
                        generation.dim,
                    )
        return [generation for generation in generations if space_of(generation) in self._served[1]]

    def _look(self, generations: dict[int, Generation]) -> list[Job]:
        """Jobs, of generations that nobody reads only when those of a moment have gathered."""
        now = time.monotonic()
        if now >= self._due_at:
            self._due_at = 0.0
        if now < self._gathers_until:
            return self._claim({id: generation for id, generation in generations.items() if generation.is_live})
        jobs = self._claim(generations)
        has_others = any(not generations[job.generation].is_live for job in jobs)
        self._gathers_until = now + REST_S if has_others and len(jobs) < self._most else 0.0
        return jobs

    def _claim(self, generations: Mapping[int, Generation]) -> list[Job]:
        """Jobs of each generation in turn, so that none of them is always the one that gets what the others leave."""
        assert self._queue is not None
        if not generations:
            return []
        ids = list(generations)
        self._turn = (self._turn + 1) % len(ids)
        self._first = ids[self._turn]
        self.held = self._queue.claim(ids[self._turn :] + ids[: self._turn], self._most, self._lease_s)
        self._counts.claim(self.held, generations)
        return sorted(self.held, key=lambda job: job.generation)

    def _backfill(self, generations: Sequence[Generation]) -> bool:
        try:
            found = any(self._backfill_step(generation) for generation in generations if not generation.is_limited)
            if not found:
                self._backfill_slowly([generation for generation in generations if generation.is_limited])
            return found
        except GIVES_WAY:
            self._pause(SHORTEST_PAUSE_S)
            return True

    def _backfill_slowly(self, generations: Sequence[Generation]) -> None:
        """What is queued gathers meanwhile. The lane that takes a step takes the next, unless another one comes by before."""
        now = time.monotonic()
        if now < self._paced_until and generations:
            return
        self._paced_until = 0.0
        if generations and self._pace.take(now) and [generation for generation in generations if self._backfill_step(generation)]:
            self._paced_until = now + REST_S

    def _backfill_step(self, generation: Generation) -> bool:
        """Which of so many rows is at fault nobody knows, so what is not trouble is the table's."""
        assert self._queue is not None
        try:
            return self._queue.backfill_step(generation.id) is not None
        except psycopg.Error as error:
            if is_trouble(error):
                raise
            raise Refused(generation, error) from error

    def _read(self, generation: Generation, jobs: list[Job]) -> list[Text]:
        """The texts that are to be embedded; what needs no embedding is dealt with."""
        with self._tracing.span("read", rows=len(jobs), relation=generation.relation, generation=generation.id):
            texts = self._rows.read(generation, jobs)
        empty = [text for text in texts if text.size is None]
        if empty:
            self._write_rows(generation, empty, numpy.empty((0, generation.dim), numpy.float32))
        for text in texts:
            if text.size is not None and text.text is None:
                message = f"{text.size:,} bytes exceed the limit of {MAX_TEXT_BYTES:,} bytes a text"
                self._rows.give_up(generation, text, InvalidInput(message, hint="leave a part of it out of what is embedded"))
        found = [text for text in texts if text.text is not None]
        return found if generation.chunk_tokens is None else self._cut(generation, generation.chunk_tokens, found)

    def _cut(self, generation: Generation, chunk_tokens: int, texts: list[Text]) -> list[Text]:
        """The texts with their pieces, but for those that cannot be cut, whose rows fail."""
        cut = []
        for text in texts:
            assert text.text is not None
            try:
                pieces = self.client.chunk(text.text, chunk_tokens, overlap=generation.chunk_overlap, model=generation.model)
            except InvalidInput as error:
                self._rows.give_up(generation, text, error)
            else:
                cut.append(replace(text, pieces=tuple((piece.start_char, piece.end_char) for piece in pieces)))
        return cut

    def _embed(self, kind: Kind, texts: list[Text], generations: dict[int, Generation]) -> None:
        parts = [texts]
        while parts:
            part = parts.pop()
            vectors, error = self._call(kind, part)
            done, passages = _complete(part, len(vectors))
            self._write(part[:done], vectors[:passages], generations)
            if error is not None:
                if error.position is not None:
                    error.position = _text_at(part, error.position)
                parts += [rest for rest in self._after(error, kind, part[done:], done, generations) if rest]

    def _call(self, kind: Kind, texts: list[Text]) -> tuple[Vectors, EmbedError | None]:
        """The vectors of the first passages, all of them unless there is an error."""
        pages: list[Vectors] = [numpy.empty((0, kind.dim), numpy.float32)]
        passages = [passage for text in texts for passage in text.passages]
        try:
            with self._tracing.span("call", model=kind.model, dim=kind.dim, texts=len(passages)):
                for page in self.client.embed_pages(passages, dim=kind.dim, model=kind.model, revision=kind.revision, truncate=kind.truncate):
                    pages.append(numpy.frombuffer(page.vectors, "<f4").reshape(page.count, page.dim))
        except EmbedError as error:
            return numpy.concatenate(pages), error
        return numpy.concatenate(pages), None

    def _after(self, error: EmbedError, kind: Kind, texts: list[Text], before: int, generations: dict[int, Generation]) -> list[list[Text]]:
        """What is to be sent again after an error; `before` texts were embedded before these.

        Raises:
            EmbedError: it is nobody's fault, or everybody's.
        """
        if isinstance(error, DeadlineExceeded) and len(texts) > FEWEST_JOBS:
            self._most = max(FEWEST_JOBS, len(texts) // 2)
            raise error
        if not isinstance(error, InvalidInput | EngineFailure | DeadlineExceeded):
            raise error
        if isinstance(error, EngineFailure | DeadlineExceeded) and self.client.health() != "SERVING":
            raise Unavailable(error.message, hint=error.hint)
        # Of no text in particular: another sidecar may have come, which does not serve what the one before did.
        if isinstance(error, InvalidInput) and error.position is None and kind.space not in served_by(self.client):
            raise Unavailable(error.message, hint=error.hint)
        if error.position is not None and 0 <= error.position - before < len(texts):
            place = error.position - before
        elif len(texts) == 1:
            place = 0
        else:
            half = len(texts) // 2
            return [texts[half:], texts[:half]]
        self._blame(error, texts[place], generations)
        return [texts[:place] + texts[place + 1 :]]

    def _blame(self, error: EmbedError, text: Text, generations: dict[int, Generation]) -> None:
        error.position = None
        last = isinstance(error, InvalidInput) or (isinstance(error, EngineFailure) and text.job.attempts + 1 >= MOST_ATTEMPTS)
        if last:
            self._rows.give_up(generations[text.job.generation], text, error)
        else:
            self._rows.try_later(text.job, type(error).__name__, str(error))

    def _write(self, texts: list[Text], vectors: Vectors, generations: dict[int, Generation]) -> None:
        for id, group in groupby(texts, key=lambda text: text.job.generation):
            of_one = list(group)
            count = _passages(of_one)
            with self._tracing.span("write", rows=len(of_one), relation=generations[id].relation, generation=id):
                self._write_rows(generations[id], of_one, vectors[:count])
            vectors = vectors[count:]

    def _write_rows(self, generation: Generation, texts: list[Text], vectors: Vectors) -> None:
        written = self._rows.write(generation, texts, vectors)
        if written.settled:
            self._settled_at = time.monotonic()
        if written.held:
            self._await_held()

    def _await_held(self) -> None:
        """They are due again, which a lane that ends with the queue waits for while anything comes of it."""
        now = time.monotonic()
        if self._patience_s is None or now - self._settled_at < self._patience_s:
            self._due_at = now + HELD_S

    def _adapt(self, jobs: int, seconds: float) -> None:
        """Find the size of a batch that a slow sidecar takes some seconds for."""
        if seconds > BATCH_S:
            self._most = max(FEWEST_JOBS, min(self._most // 2, int(jobs * BATCH_S / seconds)))
        elif jobs == self._most and seconds < BATCH_S / 4:
            self._most = min(MOST_JOBS, self._most * 2)

    def _wait_for_sidecar(self, error: EmbedError) -> None:
        log.log(logging.ERROR if isinstance(error, Unauthenticated) else logging.WARNING, "%s", error)
        self._served = (0.0, set())
        self._give_back()
        self._wait(error, error.retry_after_s)

    def _give_back(self) -> None:
        # Not held any more from here on: what is held gets its lease renewed.
        jobs, self.held = self.held, []
        try:
            if self._queue is not None and jobs:
                self._queue.release(jobs)
        except psycopg.Error as error:
            log.warning("the database: %s", first_line(error))
            self.close()

    def _wait(self, error: Exception, seconds: float | None) -> None:
        """For as long as a sidecar said, else longer each time."""
        if self._patience_s is not None and time.monotonic() - self._well > self._patience_s:
            raise error
        self._troubles += 1
        longest = min(SHORTEST_PAUSE_S * 2**self._troubles, LONGEST_PAUSE_S)
        self._pause(seconds if seconds is not None else longest * random.uniform(0.5, 1))  # noqa: S311 - spreads the load


def served_by(client: Client) -> set[Space]:
    """What a sidecar makes vectors with.

    Raises:
        EmbedError
    """
    return {Space(model.name, model.revision, dim) for model in client.list_models() for dim in (*model.trained_dims, *model.declared_dims)}


def space_of(generation: Generation) -> Space:
    return Space(generation.model, generation.revision, generation.dim)


def _passages(texts: Sequence[Text]) -> int:
    return sum(len(text.passages) for text in texts)


def _complete(texts: Sequence[Text], passages: int) -> tuple[int, int]:
    """Of how many texts the first passages are all there are, and how many passages that is."""
    done = total = 0
    for text in texts:
        if total + len(text.passages) > passages:
            break
        done, total = done + 1, total + len(text.passages)
    return done, total


def _text_at(texts: Sequence[Text], passage: int) -> int:
    """The place of the text that a passage is of, both counted from 0."""
    return bisect_right(list(accumulate(len(text.passages) for text in texts)), passage)
