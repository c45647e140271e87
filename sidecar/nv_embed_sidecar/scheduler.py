"""
Requests to batches, and what becomes of those that fail.

Requests wait in two queues, interactive and bulk, that share the engine's time (`turns.py`), each fair among its clients (`queues.py`). One thread
takes batches from them and talks to the engines. While it has a bulk batch computed, a second one has small batches of queries computed beside, by
engines that can do so; whatever fails there it leaves to the first. Whoever gave up or ran out of time is dropped before the next batch.

A failure stays with whom it concerns. Memory that runs out halves the batches. A batch that fails while the engine can compute is divided until only
the requests that cannot be computed have failed. An engine that can compute nothing fails everyone who waits for it, once, and takes nothing more
until it is rebuilt; where it cannot be, or hangs, or its thread dies, the scheduler says so and ends, because only a new process can help.

In:  token ids from service.py      Out: pooled vectors on each request's Future
"""

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import numpy

from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, Overloaded, Unavailable
from nv_embed_sidecar.engines import Engine, OutOfMemory, Vectors
from nv_embed_sidecar.lanes import Lane
from nv_embed_sidecar.queues import Batch, Limits, Queue, Request, Waiting
from nv_embed_sidecar.spans import Way, computing
from nv_embed_sidecar.turns import Turns
from nv_embed_sidecar.workers import Worker

log = logging.getLogger(__name__)

SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.1, 30.0

Work = Callable[[], None]


@dataclass(frozen=True)
class Patience:
    """When an engine is given up.

    Attributes:
        hang_s: a batch may take this long whatever it costs, and
        hang_factor: this many times what it is expected to take.
        rebuild_s: one rebuilding may take this long.
        rebuild_pauses_s: before each try to rebuild a broken engine; after the last of them the scheduler gives up.
    """

    hang_s: float = 60.0
    hang_factor: float = 20.0
    rebuild_s: float = 600.0
    rebuild_pauses_s: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0, 8.0)


class Observer(Protocol):
    """What hears of the work."""

    def ran(self, engine: Engine, *, interactive: bool, lengths: Sequence[int], fill: float, seconds: float) -> None: ...

    def missed(self, requests: int) -> None: ...


class Scheduler:
    """The queues and the threads that empty them.

    Args:
        limits: what may wait, per priority.
        on_health: called with True or False whenever an engine stops or starts being able to compute.
        on_failure: called once, with the reason, when no engine will ever compute again in this process.
        batch_tokens: cost of a batch; what each engine says unless given.
        observer: is told of batches and of deadlines that passed.
    """

    def __init__(
        self,
        limits: Limits,
        on_health: Callable[[bool], None],
        on_failure: Callable[[str], None],
        *,
        batch_tokens: int | None = None,
        patience: Patience | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._limits = limits
        self._on_health = on_health
        self._on_failure = on_failure
        self._batch_tokens = batch_tokens
        self._patience = patience or Patience()
        self._observer = observer
        self._changed = threading.Condition()
        self._turns = Turns()
        self._lanes: dict[Engine, Lane] = {}
        self._under_way: set[Batch] = set()
        self._refusal: Callable[[], EmbedError] | None = None
        self._ended = False
        self._over = threading.Event()
        self._engine = Worker("engine", self._step, self._patience.hang_s, self._die)
        self._beside = Worker("beside", self._step_beside, self._patience.hang_s, self._die)

    def start(self) -> None:
        self._engine.start()
        self._beside.start()

    def close(self) -> None:
        """Let the batches under way finish, and end the threads; whoever still waits gets Unavailable."""
        with self._changed:
            self._refusal = self._refusal or _shutting_down
            self._changed.notify_all()
        self._over.wait()
        self._engine.close()
        self._beside.close()

    def waiting_texts(self) -> int:
        """Texts of both priorities that are not yet in a batch."""
        with self._changed:
            return self._turns.interactive.texts() + self._turns.bulk.texts()

    def waiting(self) -> dict[bool, Waiting]:
        """What waits and is not yet in a batch, of interactive requests and of others."""
        with self._changed:
            return {interactive: self._turns.queue(interactive=interactive).waiting() for interactive in (True, False)}

    def rates(self) -> dict[Engine, float]:
        """How much each engine computes in a second, of those that have been asked for anything."""
        with self._changed:
            return {engine: lane.rate for engine, lane in self._lanes.items()}

    def wait_s(self, *, interactive: bool) -> float:
        """When it is worth asking again, for whom there is no room."""
        with self._changed:
            return self._wait_s(self._turns.queue(interactive=interactive))

    def check(self, engine: Engine, texts: int, *, interactive: bool, client: str = "") -> None:
        """Refuse a request that would not be taken, before it costs its tokenising.

        Raises:
            Overloaded: too much waits already.
            Unavailable: the engine is broken and being rebuilt, or the sidecar is shutting down.
            EngineFailure: nothing will be computed any more.
        """
        with self._changed:
            self._check(self._lane(engine), self._turns.queue(interactive=interactive), client, texts, 0.0)

    def submit(
        self,
        engine: Engine,
        ids: Sequence[Sequence[int]],
        *,
        interactive: bool,
        deadline: float = math.inf,
        client: str = "",
        way: Way | None = None,
        admit: Callable[[], None] = lambda: None,
    ) -> "Future[Vectors]":
        """Queue one request.

        Args:
            ids: token ids of at least one text.
            deadline: `time.monotonic()` after which nobody wants the answer.
            client: whose turn it takes.
            way: hears of the batches with texts of it.
            admit: called when there is room for it, and before anything is done; what it raises refuses the request. It may not wait.
        Returns:
            A future of the pooled vectors, [len(ids), width] float32. Cancel it when nobody wants the answer any more.
        Raises:
            Overloaded, Unavailable, EngineFailure: as for `check`.
        """
        queue = self._turns.queue(interactive=interactive)
        request = Request(client, self._lane(engine), ids, deadline, way=way)
        with self._changed:
            self._check(request.lane, queue, client, len(ids), request.cost)
            admit()
            queue.enter(request)
            self._changed.notify_all()
        # Weakly, because a future keeps its callbacks: a cycle would hold the request's tokens and vectors until Python looks for cycles.
        weakly = weakref.ref(request)
        request.future.add_done_callback(lambda _: self._forget(queue, weakly()))
        return request.future

    def _lane(self, engine: Engine) -> Lane:
        with self._changed:
            if engine not in self._lanes:
                self._lanes[engine] = Lane(engine, self._batch_tokens)
            return self._lanes[engine]

    def _check(self, lane: Lane, queue: Queue, client: str, texts: int, cost: float) -> None:
        if self._refusal is not None:
            raise self._refusal()
        if lane.broken:
            wait_s = max(lane.retry_at - time.monotonic(), 1.0)
            raise Unavailable("the engine is broken and being rebuilt", hint="try again in a moment", retry_after_s=wait_s)
        if not queue.has_room(self._limits, client, texts, cost):
            raise Overloaded(
                f"{queue.texts()} texts in {len(list(queue))} requests wait already",
                hint="ask again later; a sidecar on a faster device, or more of them, clears the queue sooner",
                retry_after_s=self._wait_s(queue),
            )

    def _wait_s(self, queue: Queue) -> float:
        return min(max(self._turns.wait_s(queue), SHORTEST_RETRY_S), LONGEST_RETRY_S)

    def _forget(self, queue: Queue, request: Request | None) -> None:
        """Take a request that is answered, failed or given up out of its queue, if anything still has it."""
        if request is not None:
            with self._changed:
                queue.leave(request)

    def _step(self) -> bool:
        """The engine's thread: do what is next."""
        work = self._next(lambda now: self._rebuilding(now) or self._computing())
        if work is not None:
            work()
        else:
            self._shut_down()
        return work is not None

    def _step_beside(self) -> bool:
        """The second thread: compute what can be computed beside the batch under way."""
        work = self._next(lambda _: self._computing_beside())
        if work is not None:
            work()
        return work is not None

    def _next(self, find: Callable[[float], Work | None]) -> Work | None:
        """What `find` finds to do at some time, as soon as there is something; None when closing."""
        while True:
            with self._changed:
                if self._refusal is not None:
                    return None
                now = time.monotonic()
                expired = [request for request in self._turns.everyone() if request.deadline <= now]
                work = None if expired else find(now)
                if work is None and not expired:
                    self._changed.wait(self._until_rebuild_s(now))
            # Outside the lock: a future's callbacks take it again.
            if expired and self._observer is not None:
                self._observer.missed(len(expired))
            for request in expired:
                request.fail(DeadlineExceeded("the deadline passed while the request waited for the engine", hint="allow more time"))
            if work is not None:
                return work

    def _rebuilding(self, now: float) -> Work | None:
        due = (lane for lane in self._lanes.values() if lane.retry_at <= now)
        return next((partial(self._rebuild, lane) for lane in due), None)

    def _until_rebuild_s(self, now: float) -> float | None:
        due = min((lane.retry_at for lane in self._lanes.values()), default=math.inf)
        return None if due == math.inf else max(due - now, 0.0)

    def _computing(self) -> Work | None:
        return self._begun(self._turns.cut(), self._compute)

    def _computing_beside(self) -> Work | None:
        if not any(batch.queue is self._turns.bulk for batch in self._under_way):
            return None
        return self._begun(self._turns.cut_beside(), self._compute_beside)

    def _begun(self, batch: Batch | None, compute: Callable[[Batch], None]) -> Work | None:
        if batch is None:
            return None
        self._under_way.add(batch)
        self._changed.notify_all()
        return partial(compute, batch)

    def _compute(self, batch: Batch) -> None:
        started = time.monotonic()
        try:
            vectors = self._encode(batch, self._engine)
            batch.lane.computed(batch.cost, time.monotonic() - started)
            self._deliver(batch, vectors)
        except OutOfMemory:
            self._shrink(batch)
        except Exception as error:
            # The message may be logged: an engine sees ids, never a text.
            log.exception("a batch of %d texts failed: %s", batch.texts, error)
            self._divide(batch)
        self._ran(batch, started)

    def _compute_beside(self, batch: Batch) -> None:
        """Compute a batch, or leave it to the engine's thread, which finds out what is wrong."""
        started = time.monotonic()
        try:
            vectors = self._encode(batch, self._beside)
            if not numpy.isfinite(vectors).all():
                raise FloatingPointError("vectors that are not finite")
            self._deliver(batch, vectors)
        except Exception:
            log.warning("a batch of %d texts failed beside another one and is computed again", batch.texts, exc_info=True)
            with self._changed:
                batch.queue.suspect([batch])
        self._ran(batch, started)

    def _encode(self, batch: Batch, worker: Worker) -> Vectors:
        limit_s = max(self._patience.hang_s, self._patience.hang_factor * batch.lane.seconds(batch.cost))
        with computing(batch, batch.cost / batch.lane.budget), worker.over(limit_s):
            return batch.lane.encode(batch.ids())

    def _ran(self, batch: Batch, started: float) -> None:
        seconds = time.monotonic() - started
        interactive = batch.queue is self._turns.interactive
        with self._changed:
            self._turns.ran(batch, seconds)
            self._under_way.discard(batch)
            self._changed.notify_all()
        if self._observer is not None:
            fill = batch.cost / batch.lane.budget
            self._observer.ran(batch.lane.engine, interactive=interactive, lengths=batch.lengths(), fill=fill, seconds=seconds)

    def _deliver(self, batch: Batch, vectors: Vectors) -> None:
        """Give each request its rows; one whose rows are not numbers fails, and makes the engine suspicious."""
        finite = numpy.asarray(numpy.isfinite(vectors).all(axis=1))
        first = 0
        for request, positions in batch.parts:
            rows = slice(first, first + len(positions))
            first += len(positions)
            if finite[rows].all():
                with self._changed:
                    complete = request.fill(positions, vectors[rows])
                if complete:
                    request.answer()
            else:
                self._fail_alone(request, [position for position, fine in zip(positions, finite[rows], strict=True) if not fine])
        if not finite.all():
            log.error("%d vectors of a batch of %d are not finite", len(finite) - int(finite.sum()), len(finite))
            self._works(batch)

    def _shrink(self, batch: Batch) -> None:
        """Try again with half as much; one text that does not fit by itself never will."""
        if batch.texts > 1:
            batch.lane.halve(batch.cost)
            log.warning("out of memory on a batch of %d texts: batches are cut to %.0f tokens", batch.texts, batch.lane.budget)
            with self._changed:
                batch.queue.put_back(batch)
        elif self._works(batch):
            ((request, positions),) = batch.parts
            tokens = len(batch.ids()[0])
            log.error("out of memory on one text of %d tokens", tokens)
            hint = "cut the text, for instance with nv_chunk(), or serve the model on a device with more memory"
            request.fail(EngineFailure(f"the device has no room for a text of {tokens} tokens", hint=hint, position=positions[0]))

    def _divide(self, batch: Batch) -> None:
        """Find the requests that cannot be computed: the halves of a batch that failed are computed apart."""
        if not self._works(batch):
            return
        if len(batch.parts) == 1:
            ((request, positions),) = batch.parts
            self._fail_alone(request, positions)
        else:
            with self._changed:
                batch.queue.suspect(batch.halves())

    @staticmethod
    def _fail_alone(request: Request, positions: Sequence[int]) -> None:
        position = positions[0] if len(positions) == 1 else None
        hint = "try again; the sidecar's log says what happened"
        request.fail(EngineFailure("the engine failed on a batch", hint=hint, position=position))

    def _works(self, batch: Batch) -> bool:
        """Whether the engine can compute the simplest input, after a batch of its failed. If not, everyone who waits for it hears of it."""
        try:
            with self._engine.over(self._patience.hang_s):
                batch.lane.probe()
        except Exception as error:
            log.exception("the engine fails on the simplest input too, not serving: %s", error)
            self._break(batch)
            return False
        return True

    def _break(self, batch: Batch) -> None:
        """Everyone who waits for this engine hears that it is broken, and nothing more is taken for it."""
        lane = batch.lane
        with self._changed:
            lane.broken = True
            waiting = self._everyone()
        self._on_health(False)
        for request in waiting:
            if request.lane is lane:
                request.fail(EngineFailure("the engine is broken", hint="try again in a moment: the sidecar rebuilds it, or ends"))
        self._rebuild_later(lane)

    def _rebuild_later(self, lane: Lane) -> None:
        pauses = self._patience.rebuild_pauses_s
        if lane.rebuilds == len(pauses):
            self._die(f"the engine is broken, and rebuilding it {lane.rebuilds} times did not help")
        else:
            lane.retry_at = time.monotonic() + pauses[lane.rebuilds]

    def _rebuild(self, lane: Lane) -> None:
        lane.rebuilds += 1
        self._wait_for_beside()
        try:
            with self._engine.over(self._patience.rebuild_s):
                lane.engine.rebuild()
                lane.probe()
        except Exception as error:
            log.exception("rebuilding the engine failed: %s", error)
            self._rebuild_later(lane)
        else:
            self._mended(lane)

    def _mended(self, lane: Lane) -> None:
        with self._changed:
            lane.reset()
            healthy = self._refusal is None and not any(other.broken for other in self._lanes.values())
        if healthy:
            log.warning("the engine works again: serving")
            self._on_health(True)

    def _everyone(self) -> list[Request]:
        """Who waits for an answer."""
        return [*self._turns.everyone(), *chain.from_iterable(batch.requests() for batch in self._under_way)]

    def _shut_down(self) -> None:
        self._wait_for_beside()
        self._end(_shutting_down)

    def _wait_for_beside(self) -> None:
        """Until the second thread computes nothing: this one does not either. A hang there ends the wait too."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._under_way)

    def _die(self, reason: str) -> None:
        """Nothing will be computed any more."""
        self._on_health(False)
        if self._end(_stopped):
            self._on_failure(reason)

    def _end(self, refusal: Callable[[], EmbedError]) -> bool:
        """Answer everyone who waits, and take nothing more. Returns whether this had not been done before."""
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._refusal = refusal
            self._changed.notify_all()
            left = self._everyone()
        for request in left:
            request.fail(refusal())
        self._over.set()
        return True


def _shutting_down() -> EmbedError:
    return Unavailable("the sidecar is shutting down", hint="try again")


def _stopped() -> EmbedError:
    return EngineFailure("the engine has stopped", hint="restart the sidecar; its log says why the engine stopped")
