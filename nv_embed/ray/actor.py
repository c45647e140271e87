"""
An actor: turns at ranges.

Each turn takes a range, and the lanes of a worker (`nv_embed/lanes.py`) share it batch by batch, so a row goes the same way as any other: read,
embedded with no transaction open, written where it still reads the same. The turn's own thread gives the leases of what is left another while, and
tells the database how fast it goes. A turn that dies leaves nothing behind but leases.

In:  turns, by Ray Data      Out: for each, how many rows were embedded and how many failed
"""

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy
import psycopg
from psycopg.types.json import Jsonb
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from nv_embed.client import Client
from nv_embed.counts import Counts
from nv_embed.errors import DeadlineExceeded, EmbedError, Overloaded, Unavailable, UnknownModel
from nv_embed.jobs import Generation, Job, Queue
from nv_embed.lanes import Lane, Pace, served_by, space_of
from nv_embed.ray.ranges import Ranges, open_queue
from nv_embed.ray.settings import Settings
from nv_embed.ray.sidecar import OwnSidecar
from nv_embed.rows import Refused, first_line
from nv_embed.sidecar_process import SidecarFailed

log = logging.getLogger(__name__)

BEAT_S = 2.0
"""How often the database is told of the actor."""

Batch = dict[str, Any]


class Share:
    """The jobs of a range that no lane has taken yet."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._lock = threading.Lock()
        self._left = deque(jobs)

    def take(self, most: int) -> list[Job]:
        with self._lock:
            return [self._left.popleft() for _ in range(min(most, len(self._left)))]

    def left(self) -> list[Job]:
        with self._lock:
            return list(self._left)

    def close(self) -> list[Job]:
        """What is left; lanes find nothing more."""
        return self.take(len(self._left))


class Filler:
    """What Ray Data keeps on a node: lanes to each endpoint, and the sidecar, if it has one of its own."""

    def __init__(self, settings: Settings, reembedding: int, generation: int) -> None:
        self._settings = settings
        self._counts = Counts()
        self._queue: Queue | None = None
        self._ranges = Ranges(self._connected, reembedding, generation, settings.range_rows, settings.lease_s)
        self._id: int | None = None
        self._beaten, self._before = time.monotonic(), 0
        self._sidecar: OwnSidecar | None = None
        self._clients: dict[str, Client] = {}
        self._lanes: dict[str, list[Lane]] = {}

    def __call__(self, batch: Batch) -> Batch:
        """One turn. An error that ends the job is an answer: what fails otherwise, a node's death, only costs the turn."""
        before = self._counts.embedded, self._counts.failed
        error = ""
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((psycopg.OperationalError, Unavailable, Overloaded, DeadlineExceeded)),
                stop=stop_after_delay(self._settings.patience_s),
                wait=wait_random_exponential(0.1, 10),
                reraise=True,
            ):
                with attempt:
                    self._turn(int(batch["turn"][0]))
        except (EmbedError, SidecarFailed, Refused) as failed:
            error = f"{type(failed).__name__}: {failed}"
        except psycopg.Error as failed:
            error = f"the database: {first_line(failed)}"
        except Exception as failed:  # a fault of ours too must end the job: Ray would only count it
            log.critical("a turn has failed", exc_info=True)
            error = f"{type(failed).__name__}: {failed}"
        done = self._counts.embedded - before[0], self._counts.failed - before[1]
        return {"embedded": numpy.array(done[:1]), "failed": numpy.array(done[1:]), "error": numpy.array([error])}

    def _turn(self, number: int) -> None:
        # First of all, because a sidecar may take longer to start than a lease lasts.
        endpoint = self._endpoint(number)
        taken = self._ranges.take()
        if taken is not None:
            generation, jobs = taken
            share = Share(jobs)
            try:
                self._fill(self._lanes_of(endpoint, generation), generation, share)
            finally:
                self._give_back(share)

    def _fill(self, lanes: Sequence[Lane], generation: Generation, share: Share) -> None:
        with ThreadPoolExecutor(len(lanes)) as pool:
            under_way = {pool.submit(_run, lane, generation, share) for lane in lanes}
            self._watch(under_way, lanes, share)
        for lane in under_way:
            lane.result()

    def _watch(self, under_way: set["Future[None]"], lanes: Sequence[Lane], share: Share) -> None:
        """Until the lanes are done, or one of them has failed."""
        renewed = time.monotonic()
        left = under_way
        self._beat()
        while True:
            done, left = wait(left, min(self._settings.lease_s / 4, BEAT_S), FIRST_EXCEPTION)
            if not left:
                return
            if any(lane.exception() for lane in done):
                self._give_back(share)
            try:
                if self._sidecar is not None:
                    self._sidecar.revive()
                if time.monotonic() - renewed >= self._settings.lease_s / 4:
                    renewed = time.monotonic()
                    self._connected().release([*share.left(), *(job for lane in lanes for job in lane.held)], self._settings.lease_s)
                self._beat()
            except psycopg.Error as error:  # the next look connects anew; till then the leases last
                log.warning("the database: %s", first_line(error))

    def _give_back(self, share: Share) -> None:
        with suppress(psycopg.Error):  # or their leases run out
            self._connected().release(share.close())

    def _beat(self) -> None:
        now, embedded = time.monotonic(), self._counts.embedded
        seconds = now - self._beaten
        if self._id is None or seconds >= BEAT_S:
            rates = dict.fromkeys(self._counts.by_generation(), (embedded - self._before) / seconds)
            self._id = self._connected().beat(self._id, f"{socket.gethostname()}:{os.getpid()}", False, Jsonb(rates))
            self._beaten, self._before = now, embedded

    def _connected(self) -> Queue:
        if self._queue is None or self._queue.connection.broken or self._queue.connection.closed:
            self._queue = open_queue(self._settings.database_url)
        return self._queue

    def _endpoint(self, number: int) -> str:
        """Turns are given out one after the other, so those that are under way at a time go to different sidecars."""
        if self._settings.serve is None:
            return self._settings.endpoints[number % len(self._settings.endpoints)]
        if self._sidecar is None:
            self._sidecar = OwnSidecar(self._settings.serve, self._settings.serve_options)
        self._sidecar.revive().result()
        return self._sidecar.endpoint

    def _lanes_of(self, endpoint: str, generation: Generation) -> list[Lane]:
        """Those to other endpoints keep no connections meanwhile."""
        for lane in [lane for other, lanes in self._lanes.items() if other != endpoint for lane in lanes]:
            lane.close()
        if endpoint not in self._lanes:
            settings = self._settings
            client = Client(endpoint, timeout_s=settings.timeout_s, **settings.credentials)
            _check_served(client, endpoint, generation)
            self._lanes[endpoint] = [
                Lane(
                    lambda: open_queue(settings.database_url),
                    client,
                    settings.lease_s,
                    time.sleep,
                    self._counts,
                    Pace(),
                    settings.patience_s,
                    write_s=settings.write_s,
                )
                for _ in range(settings.lanes)
            ]
        return self._lanes[endpoint]


def _run(lane: Lane, generation: Generation, share: Share) -> None:
    lane.begin()
    while jobs := share.take(lane.most):
        lane.fill(generation, jobs)


def _check_served(client: Client, endpoint: str, generation: Generation) -> None:
    """What waits for a model that comes later is a worker; a job says so at once."""
    served = served_by(client)
    if space_of(generation) not in served:
        raise UnknownModel(
            f"the sidecar at {endpoint} does not serve {generation.model}, revision {generation.revision}, at {generation.dim} dimensions",
            hint=f"it serves {', '.join(sorted({space.model for space in served}))}",
        )
