"""
Requests to batches.

Requests wait in two queues, interactive and bulk. One thread takes batches from them, interactive first, and alone talks to the engines. A batch
is cut by tokens: short requests share one and a long request is spread over several, so an interactive request waits for the one batch under way
and no more. Whoever gave up or ran out of time is dropped before the next batch.

In:  token ids from service.py      Out: pooled vectors on each request's Future
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

import numpy

from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, Overloaded, Unavailable
from nv_embed_sidecar.engines import Engine, Vectors

log = logging.getLogger(__name__)

PROBE_INTERVAL_S = 2.0
FIRST_TOKENS_PER_S = 5_000.0


@dataclass(frozen=True)
class Limits:
    """What a batch holds and how much may wait, per priority."""

    batch_tokens: int
    queue_texts: int
    queue_tokens: int
    queue_requests: int


@dataclass(eq=False)
class _Request:
    engine: Engine
    ids: Sequence[Sequence[int]]
    deadline: float
    vectors: Vectors
    future: "Future[Vectors]" = field(default_factory=Future)
    # Positions not yet in a batch, longest text last: neighbours of equal length waste least padding, and taking from the end is cheap.
    waiting: list[int] = field(default_factory=list)
    under_way: int = 0


@dataclass
class _Queue:
    """Requests with texts that are not yet in a batch, oldest first."""

    requests: "OrderedDict[_Request, None]" = field(default_factory=OrderedDict)
    texts: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class _Batch:
    engine: Engine
    parts: list[tuple[_Request, list[int]]]

    def ids(self) -> list[Sequence[int]]:
        return [request.ids[position] for request, positions in self.parts for position in positions]


class Scheduler:
    """The queues and the thread that empties them.

    Args:
        limits: sizes of batches and queues.
        on_health: called with True or False whenever the engine starts or stops being able to compute.
    """

    def __init__(self, limits: Limits, on_health: Callable[[bool], None]) -> None:
        self._limits = limits
        self._on_health = on_health
        self._changed = threading.Condition()
        self._interactive = _Queue()
        self._bulk = _Queue()
        self._broken: Engine | None = None
        self._under_way: _Batch | None = None
        self._dead = False
        self._closing = False
        self._tokens_per_s = FIRST_TOKENS_PER_S
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Let the batch under way finish, and end the thread; whoever still waits gets Unavailable."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def waiting_texts(self) -> int:
        """Texts of both priorities that are not yet in a batch."""
        with self._changed:
            return self._interactive.texts + self._bulk.texts

    def check(self, texts: int, *, interactive: bool) -> None:
        """Refuse a request that would not be taken, before it costs its tokenising.

        Raises:
            Overloaded: too much waits already.
            EngineFailure: the engine's thread is gone.
        """
        with self._changed:
            self._check(self._queue(interactive), texts, 0)

    def submit(self, engine: Engine, ids: Sequence[Sequence[int]], *, interactive: bool, deadline: float = math.inf) -> "Future[Vectors]":
        """Queue one request.

        Args:
            ids: token ids of at least one text.
            deadline: `time.monotonic()` after which nobody wants the answer.
        Returns:
            A future of the pooled vectors, [len(ids), width] float32. Cancel it when nobody wants the answer any more.
        Raises:
            Overloaded, EngineFailure: as for `check`.
        """
        request = _Request(engine, ids, deadline, numpy.empty((len(ids), engine.width), dtype=numpy.float32))
        request.waiting = sorted(range(len(ids)), key=lambda position: len(ids[position]))
        tokens = sum(map(len, ids))
        queue = self._queue(interactive)
        with self._changed:
            self._check(queue, len(ids), tokens)
            queue.requests[request] = None
            queue.texts += len(ids)
            queue.tokens += tokens
            self._changed.notify()
        request.future.add_done_callback(lambda _: self._forget(queue, request))
        return request.future

    def _queue(self, interactive: bool) -> _Queue:
        return self._interactive if interactive else self._bulk

    def _check(self, queue: _Queue, texts: int, tokens: int) -> None:
        if self._dead:
            raise EngineFailure("the engine has stopped", hint="restart the sidecar; its log says why the engine stopped")
        if self._closing:
            raise Unavailable("the sidecar is shutting down", hint="try again")
        full = (
            queue.texts + texts > self._limits.queue_texts
            or queue.tokens + tokens > self._limits.queue_tokens
            or len(queue.requests) + 1 > self._limits.queue_requests
        )
        # A single request that exceeds the limit by itself must still be possible.
        if full and queue.requests:
            raise Overloaded(
                f"{queue.texts} texts in {len(queue.requests)} requests wait already",
                hint="ask again later; a sidecar on a faster device, or more of them, clears the queue sooner",
                retry_after_s=min(max(queue.tokens / self._tokens_per_s, 0.1), 30.0),
            )

    def _forget(self, queue: _Queue, request: _Request) -> None:
        """Take a request that is answered, failed or given up out of its queue."""
        with self._changed:
            if request in queue.requests:
                self._remove(queue, request)

    def _remove(self, queue: _Queue, request: _Request) -> None:
        del queue.requests[request]
        queue.texts -= len(request.waiting)
        queue.tokens -= sum(len(request.ids[position]) for position in request.waiting)
        request.waiting.clear()

    def _run(self) -> None:
        try:
            while (batch := self._next()) is not None:
                self._under_way = batch
                self._compute(batch)
                self._under_way = None
            self._end(Unavailable("the sidecar is shutting down", hint="try again"))
        except BaseException:  # whatever ends this thread must be seen: nobody else computes
            log.critical("the engine's thread has died", exc_info=True)
            self._end(EngineFailure("the engine has stopped", hint="restart the sidecar; its log says why the engine stopped"))
            self._on_health(False)

    def _end(self, error: EmbedError) -> None:
        with self._changed:
            self._dead = True
            left = [*self._interactive.requests, *self._bulk.requests, *self._computing()]
        for request in left:
            _fail(request, error)

    def _computing(self) -> list[_Request]:
        return [request for request, _ in self._under_way.parts] if self._under_way else []

    def _next(self) -> _Batch | None:
        """The next batch, as soon as there is one; None when closing."""
        while True:
            expired: list[_Request] = []
            try:
                with self._changed:
                    if self._closing:
                        return None
                    batch = self._take(self._interactive, expired) or self._take(self._bulk, expired)
                    if batch is not None:
                        return batch
                    if not expired:
                        self._changed.wait(PROBE_INTERVAL_S if self._broken else None)
            finally:
                # Outside the lock: a future's callbacks take it again.
                for request in expired:
                    _fail(request, DeadlineExceeded("the deadline passed while the request waited for the engine", hint="allow more time"))
            if self._broken is not None:
                self._probe(self._broken)

    def _take(self, queue: _Queue, expired: list[_Request]) -> _Batch | None:
        """Cut a batch from the oldest requests of a queue that are for one engine."""
        now = time.monotonic()
        parts: list[tuple[_Request, list[int]]] = []
        room = self._limits.batch_tokens
        for request in list(queue.requests):
            if request.deadline <= now:
                self._remove(queue, request)
                expired.append(request)
                continue
            if parts and request.engine is not parts[0][0].engine:
                continue
            taken = self._take_texts(request, room, at_least=0 if parts else 1)
            if not taken:
                break
            tokens = sum(len(request.ids[position]) for position in taken)
            room -= tokens
            queue.texts -= len(taken)
            queue.tokens -= tokens
            request.under_way += len(taken)
            parts.append((request, taken))
            if request.waiting:
                break
            del queue.requests[request]
        return _Batch(parts[0][0].engine, parts) if parts else None

    @staticmethod
    def _take_texts(request: _Request, room: int, *, at_least: int) -> list[int]:
        taken: list[int] = []
        while request.waiting and (len(taken) < at_least or len(request.ids[request.waiting[-1]]) <= room):
            position = request.waiting.pop()
            taken.append(position)
            room -= len(request.ids[position])
        return taken

    def _compute(self, batch: _Batch) -> None:
        ids = batch.ids()
        started = time.monotonic()
        try:
            vectors = batch.engine.encode(ids)
            if not numpy.isfinite(vectors).all():
                raise FloatingPointError("the engine computed vectors that are not finite")
        except Exception as error:
            # The message may be logged: an engine sees ids, never a text.
            log.exception("a batch of %d texts failed: %s", len(ids), error)
            failure = EngineFailure("the engine failed on a batch", hint="try again; the sidecar's log says what happened")
            for request, _ in batch.parts:
                _fail(request, failure)
            self._probe(batch.engine)
            return
        elapsed = time.monotonic() - started
        self._tokens_per_s += 0.2 * (sum(map(len, ids)) / max(elapsed, 1e-6) - self._tokens_per_s)
        self._healthy(batch.engine)
        first = 0
        for request, positions in batch.parts:
            request.vectors[positions] = vectors[first : first + len(positions)]
            first += len(positions)
            request.under_way -= len(positions)
            if not request.waiting and not request.under_way:
                _answer(request)

    def _probe(self, engine: Engine) -> None:
        """Find out whether an engine that failed can compute at all: one bad text must not look like a dead device."""
        try:
            engine.encode([[0]])
        except Exception as error:
            if self._broken is None:
                log.exception("the engine fails on the simplest input too, not serving: %s", error)
                self._on_health(False)
            self._broken = engine
        else:
            self._healthy(engine)

    def _healthy(self, engine: Engine) -> None:
        if self._broken is engine:
            log.warning("the engine works again: serving")
            self._broken = None
            self._on_health(True)


def _answer(request: _Request) -> None:
    try:
        request.future.set_result(request.vectors)
    except InvalidStateError:
        log.debug("a request was given up while its last batch was computed")


def _fail(request: _Request, error: EmbedError) -> None:
    try:
        request.future.set_exception(error)
    except InvalidStateError:
        log.debug("a request that failed had been given up")
