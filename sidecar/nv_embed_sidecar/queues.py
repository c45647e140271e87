"""
What waits, and in which order it goes.

There is one queue for interactive requests and one for bulk. In a queue, what one client asks of one engine is a flow: first in, first out. Flows
share by virtual time, as in start-time fair queueing: every text that is taken moves its flow ahead by the engine seconds that it costs, and the flow
that is furthest behind goes next. The queue's own clock advances as each flow's would if all were served at once, and a flow that comes anew starts
there: it neither waits behind what others have queued nor is paid for time in which it asked for nothing, nobody gains by coming again and again, and
no crowd of newcomers holds up who was there before.

A batch is cut by cost, across clients, for one engine. Nothing here waits or locks; the scheduler does.

In:  requests      Out: batches
"""

import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import chain
from typing import Self

import numpy

from nv_embed.errors import EmbedError
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.lanes import Lane
from nv_embed_sidecar.spans import Way

# A client may hold this many times what is free when it asks; alone it leaves a quarter of the queue, less what its last request took of that.
GREED = 3
# What must be free for a client's first request, of the queue.
FIRST = 1 / 8


@dataclass(frozen=True)
class Limits:
    """How much may wait in one queue.

    Attributes:
        cost: in the unit of `Engine.cost`, tokens of short texts.
    """

    texts: int
    cost: float
    requests: int


@dataclass(frozen=True)
class Waiting:
    """What waits in a queue.

    Attributes:
        oldest_s: for how long the request has waited that has for longest.
    """

    texts: int
    cost: float
    oldest_s: float


@dataclass(eq=False)
class Request:
    """Texts that one caller wants vectors for.

    Attributes:
        deadline: `time.monotonic()` after which nobody wants the answer.
        vectors: [texts, width], filled batch by batch.
        waiting: positions of texts that are in no batch, longest last: neighbours of equal length waste least, and taking from the end is cheap.
        missing: texts without a vector.
        cost: of the texts that wait.
        since: `time.monotonic()` when it came.
        way: hears when it is computed, for its trace; None where it has none.
    """

    client: str
    lane: Lane
    ids: Sequence[Sequence[int]]
    deadline: float = math.inf
    since: float = field(default_factory=time.monotonic)
    future: "Future[Vectors]" = field(default_factory=Future)
    way: Way | None = None
    vectors: Vectors = field(init=False)
    waiting: list[int] = field(init=False)
    missing: int = field(init=False)
    cost: float = field(init=False)

    def __post_init__(self) -> None:
        self.vectors = numpy.empty((len(self.ids), self.lane.engine.width), dtype=numpy.float32)
        self.waiting = sorted(range(len(self.ids)), key=lambda position: len(self.ids[position]))
        self.missing = len(self.ids)
        self._costs = self.lane.costs(self.ids)
        self.cost = sum(self._costs)

    def next_cost(self) -> float:
        return self._costs[self.waiting[-1]]

    def take(self) -> int:
        """The longest text that waits, for a batch."""
        position = self.waiting.pop()
        self.cost -= self._costs[position]
        return position

    def put_back(self, positions: Sequence[int]) -> None:
        self.waiting.extend(reversed(positions))
        self.cost += self.cost_of(positions)

    def cost_of(self, positions: Sequence[int]) -> float:
        return sum(self._costs[position] for position in positions)

    def fill(self, positions: Sequence[int], vectors: Vectors) -> bool:
        """Take some texts' vectors. Returns whether no text is without one any more."""
        self.vectors[positions] = vectors
        self.missing -= len(positions)
        return not self.missing

    def answer(self) -> None:
        with suppress(InvalidStateError):  # whoever gave up, or has failed already, stays so
            self.future.set_result(self.vectors)

    def fail(self, error: EmbedError) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts that are computed together: some positions of some requests, all for one engine."""

    queue: "Queue"
    lane: Lane
    parts: tuple[tuple[Request, list[int]], ...]

    @property
    def cost(self) -> float:
        return sum(request.cost_of(positions) for request, positions in self.parts)

    @property
    def texts(self) -> int:
        return sum(len(positions) for _, positions in self.parts)

    def requests(self) -> list[Request]:
        return [request for request, _ in self.parts]

    def ids(self) -> list[Sequence[int]]:
        return [request.ids[position] for request, positions in self.parts for position in positions]

    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids()]

    def halves(self) -> "tuple[Batch, Batch]":
        """Two batches of half as many requests."""
        middle = len(self.parts) // 2
        return Batch(self.queue, self.lane, self.parts[:middle]), Batch(self.queue, self.lane, self.parts[middle:])

    def wanted(self) -> Self:
        """What is left of it when those are taken out who gave up, failed or ran out of time."""
        return type(self)(self.queue, self.lane, tuple(part for part in self.parts if not part[0].future.done()))


@dataclass(eq=False)
class Flow:
    """What one client asks of one engine, oldest first, and how far it has been served, in virtual seconds."""

    lane: Lane
    clock: float
    requests: "OrderedDict[Request, None]" = field(default_factory=OrderedDict)


class Queue:
    """Requests of one priority, in the order in which they are fair to serve."""

    def __init__(self) -> None:
        self._flows: dict[tuple[str, Lane], Flow] = {}
        self._clock = 0.0
        # Parts of a batch that failed, to be computed apart and before anything else: one of them fails again, the others must not wait for it.
        self._suspects: list[Batch] = []

    def __iter__(self) -> Iterator[Request]:
        """Requests with texts that are in no batch."""
        return chain.from_iterable(flow.requests for flow in self._flows.values())

    def everyone(self) -> list[Request]:
        """All whose answer hangs on this queue and not on the batch under way."""
        return [*self, *chain.from_iterable(batch.requests() for batch in self._suspects)]

    def is_empty(self) -> bool:
        return not self._suspects and not self._flows

    def texts(self) -> int:
        return _texts(self)

    def waiting(self) -> Waiting:
        requests = list(self)
        now = time.monotonic()
        return Waiting(_texts(requests), _cost(requests), max((now - request.since for request in requests), default=0.0))

    def seconds(self) -> float:
        """How long the engines take for all that waits."""
        return sum(request.lane.seconds(request.cost) for request in self)

    def batch_s(self) -> float:
        """How long the longest batch takes that may come of this queue."""
        return max((request.lane.batch_s() for request in self.everyone()), default=0.0)

    def has_room(self, limits: Limits, client: str, texts: int, cost: float) -> bool:
        """Whether one more request may wait.

        A client may hold some times as much as is still free, so that it cannot fill the queue for all. One that has nothing here gets a request of
        any size in as long as a small part is free, which is less than any one client leaves; so what waits exceeds a limit by one request at most.
        """
        requests = list(self)
        own = [request for request in requests if request.client == client]
        return all(
            more <= min(free, GREED * free - held) if own else min(more, limit * FIRST) <= free
            for limit, more, free, held in (
                (limits.texts, texts, limits.texts - _texts(requests), _texts(own)),
                (limits.cost, cost, limits.cost - _cost(requests), _cost(own)),
                (limits.requests, 1, limits.requests - len(requests), len(own)),
            )
        )

    def enter(self, request: Request) -> None:
        self._flow(request).requests[request] = None

    def leave(self, request: Request) -> None:
        """Forget a request that was answered, failed or given up."""
        key = (request.client, request.lane)
        if (flow := self._flows.get(key)) is not None:
            flow.requests.pop(request, None)
            if not flow.requests:
                del self._flows[key]
        self.suspect(())

    def put_back(self, batch: Batch) -> None:
        """To the front: these texts are computed again before what came after them."""
        for request, positions in reversed(batch.wanted().parts):
            flow = self._flow(request)
            flow.requests[request] = None
            flow.requests.move_to_end(request, last=False)
            flow.clock -= request.lane.seconds(request.cost_of(positions))
            request.put_back(positions)

    def suspect(self, batches: Sequence[Batch]) -> None:
        """Compute these apart, and keep nothing that is not wanted any more."""
        wanted = [batch.wanted() for batch in (*self._suspects, *batches)]
        self._suspects = [batch for batch in wanted if batch.parts]

    def cut(self) -> Batch | None:
        """The next batch, if the queue is not empty."""
        if self._suspects:
            return self._suspects.pop()
        if not self._flows:
            return None
        lane = self._lane_behind()
        return self._cut(lane, lane.budget, over=True)

    def cut_beside(self) -> Batch | None:
        """The next batch of texts that the engine may compute beside another one, if there is one."""
        if not self._flows:
            return None
        lane = self._lane_behind()
        return self._cut(lane, lane.budget_beside(), over=False)

    def _lane_behind(self) -> Lane:
        """The lane of the flow that is furthest behind."""
        return min(self._flows.values(), key=lambda flow: flow.clock).lane

    def _cut(self, lane: Lane, room: float, *, over: bool) -> Batch | None:
        """Texts up to a cost; with `over`, one text even if it alone costs more."""
        share = 1 / len(self._flows)
        order = [(flow.clock, number, flow) for number, flow in enumerate(self._flows.values()) if flow.lane is lane]
        heapify(order)
        parts: dict[Request, list[int]] = {}
        while order:
            _, number, flow = order[0]
            request = next(iter(flow.requests))
            cost = request.next_cost()
            if cost > room and (parts or not over):
                # Others may have a text that fits; this flow is furthest behind, so that it goes first in the next batch.
                heappop(order)
                continue
            parts.setdefault(request, []).append(request.take())
            room -= cost
            seconds = lane.seconds(cost)
            flow.clock += seconds
            self._clock += seconds * share
            if not request.waiting:
                self.leave(request)
            if flow.requests:
                heapreplace(order, (flow.clock, number, flow))
            else:
                heappop(order)
        return Batch(self, lane, tuple(parts.items())) if parts else None

    def _flow(self, request: Request) -> Flow:
        key = (request.client, request.lane)
        if key not in self._flows:
            self._flows[key] = Flow(request.lane, self._clock)
        return self._flows[key]


def _texts(requests: Iterable[Request]) -> int:
    return sum(len(request.waiting) for request in requests)


def _cost(requests: Iterable[Request]) -> float:
    return sum(request.cost for request in requests)
