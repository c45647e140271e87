"""
The asynchronous embedder: lanes, and a watch over them.

A worker has some lanes for each sidecar (`lanes.py`): while one waits for the sidecar another one writes, and one that fails or waits concerns no
other. The watch listens for new jobs, gives the leases of work that takes long another while, and tells the database how fast the lanes are.

In:  a database, the addresses of sidecars      Out: rows with vectors, until it is told to stop
"""

import logging
import os
import socket
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

import psycopg
from psycopg.types.json import Jsonb

from nv_embed.client import Client
from nv_embed.counts import Counts
from nv_embed.credentials import Credentials
from nv_embed.errors import EmbedError, InvalidInput
from nv_embed.jobs import Queue, connect
from nv_embed.lanes import Lane, Pace
from nv_embed.rows import first_line
from nv_embed.tracing import Tracing

log = logging.getLogger(__name__)

CHANNEL = "nv_embed_job"

TICK_S = 0.25
"""How often the watch looks around."""

BEAT_S = 2.0
"""How often it tells the database of itself."""


@dataclass(frozen=True)
class Settings:
    """How a worker works.

    Attributes:
        database_url: as libpq takes it.
        endpoints: of sidecars; each has lanes of its own.
        lanes: for each sidecar.
        lease_s: after so long without a sign of life another worker takes the jobs.
        poll_s: how often to look for jobs of which nothing tells.
        timeout_s: for one page of texts.
        credentials: what all of them are shown, and known by.
        tracing: makes a span of each batch.
        once: end when there is nothing to do, or when the sidecar, the database or a row that somebody holds is away for longer than `timeout_s`.
    """

    database_url: str
    endpoints: tuple[str, ...]
    lanes: int = 3
    lease_s: float = 60.0
    poll_s: float = 2.0
    timeout_s: float = 60.0
    once: bool = False
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    tracing: Tracing = field(default_factory=Tracing, repr=False)


class Worker:
    """Some threads that embed until `stop`.

    Attributes:
        counts: what has been done so far.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.counts = Counts()
        self._changed = threading.Condition()
        self._calls = 0
        # How many of the calls the lanes of each sidecar have answered: one lane for all of them.
        self._answered: dict[Client, int] = defaultdict(int)
        self._idle: set[Lane] = set()
        self._stopping = False
        self._died: BaseException | None = None
        clients = [Client(endpoint, timeout_s=settings.timeout_s, **settings.credentials) for endpoint in settings.endpoints]
        patience_s = settings.timeout_s if settings.once else None
        pace = Pace()
        self._lanes = [
            Lane(self._connect, client, settings.lease_s, self._pause, self.counts, pace, patience_s, settings.tracing)
            for client in clients
            for _ in range(settings.lanes)
        ]
        self._threads = [
            threading.Thread(target=self._run_lane, args=[lane], name=f"lane-{place}", daemon=True) for place, lane in enumerate(self._lanes)
        ]

    def run(self) -> None:
        """Work until told to stop, or until nothing is left to do where `once` says so.

        Raises:
            EmbedError, psycopg.Error: the sidecar or the database was away for too long.
            RuntimeError: a lane died of a fault of ours; the others have ended what they had under way.
        """
        for thread in self._threads:
            thread.start()
        watch = Watch(self, self._settings)
        while any(thread.is_alive() for thread in self._threads):
            watch.look()
            if self._settings.once and self._is_done():
                self.stop()
        watch.close()
        if isinstance(self._died, EmbedError | psycopg.Error):
            raise self._died
        if self._died is not None:
            raise RuntimeError("a lane has died") from self._died

    def stop(self) -> None:
        """Let the batches under way be written, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def is_stopping(self) -> bool:
        return self._stopping

    def call(self) -> None:
        """Have one lane of each sidecar look for jobs. Each look costs the database something, and one that finds a full batch calls another."""
        with self._changed:
            self._calls += 1
            self._changed.notify_all()

    def _call_idle(self) -> None:
        if self._idle:
            self.call()

    def is_idle(self) -> bool:
        return len(self._idle) == len(self._lanes)

    def _is_done(self) -> bool:
        """Whether all calls are answered, and no lane knows of anything that is still to come."""
        with self._changed:
            has_looked = self.is_idle() and all(self._answered[lane.client] == self._calls for lane in self._lanes)
        return has_looked and all(lane.rest_s is None for lane in self._lanes)

    def leased(self) -> list[Lane]:
        return [lane for lane in self._lanes if lane.held]

    def _connect(self) -> Queue:
        return Queue(connect(self._settings.database_url))

    def _run_lane(self, lane: Lane) -> None:
        try:
            while not self._stopping:
                if not lane.step(self._call_idle):
                    self._await_call(lane)
        except (EmbedError, psycopg.Error) as error:
            self._died = error
            self.stop()
        except BaseException as error:  # whatever ends this thread must be seen: a supervisor then starts another worker
            log.critical("a lane has died", exc_info=True)
            self._died = error
            self.stop()
        finally:
            lane.close()

    def _await_call(self, lane: Lane) -> None:
        """Until there is a call that no lane of this sidecar has answered, or for the polling interval, or as long as it rests."""
        with self._changed:
            self._idle.add(lane)
            self._changed.wait_for(
                lambda: self._stopping or self._answered[lane.client] != self._calls, self._settings.poll_s if lane.rest_s is None else lane.rest_s
            )
            self._idle.remove(lane)
            self._answered[lane.client] = self._calls

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, seconds)


class Watch:
    """What is done beside the lanes, over a connection of its own. Where that breaks, the lanes go on and poll."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._worker = worker
        self._settings = settings
        self._queue: Queue | None = None
        self._id: int | None = None
        self._waits = False
        self._renewed = self._beaten = time.monotonic()
        self._before: dict[int, int] = {}

    def look(self) -> None:
        """Wait a moment for a call, and do what is due."""
        try:
            queue = self._connected()
            for _ in queue.connection.notifies(timeout=TICK_S, stop_after=1):
                self._worker.call()
            now = time.monotonic()
            if now - self._renewed > self._settings.lease_s / 4:
                self._renewed = now
                for lane in self._worker.leased():
                    queue.release(list(lane.held), self._settings.lease_s)
            if now - self._beaten > BEAT_S or self._worker.is_idle() != self._waits:
                self._beat(queue, now)
        except psycopg.Error as error:
            log.warning("the database: %s", first_line(error))
            self._forget()
            time.sleep(TICK_S)

    def close(self) -> None:
        try:
            if self._queue is not None and self._id is not None:
                self._queue.leave(self._id)
        except psycopg.Error as error:
            log.warning("the database: %s", first_line(error))
        self._forget()

    def _connected(self) -> Queue:
        if self._queue is None:
            self._queue = Queue(connect(self._settings.database_url))
            self._queue.connection.execute(f"LISTEN {CHANNEL}")
            self._beat(self._queue, time.monotonic())
        return self._queue

    def _beat(self, queue: Queue, now: float) -> None:
        seconds = max(now - self._beaten, 0.001)
        done = {id: count.embedded for id, count in self._worker.counts.by_generation().items()}
        rates = {id: (count - self._before.get(id, 0)) / seconds for id, count in done.items() if count != self._before.get(id, 0)}
        waits = self._worker.is_idle()
        self._id = queue.beat(self._id, f"{socket.gethostname()}:{os.getpid()}", waits, Jsonb(rates))
        # Whoever wrote before this was committed did not know that somebody waits.
        if waits and not self._waits:
            self._worker.call()
        self._waits, self._beaten, self._before = waits, now, done

    def _forget(self) -> None:
        if self._queue is not None:
            self._queue.connection.close()
        self._queue, self._waits = None, False


def find_sidecar(database_url: str) -> tuple[str, Credentials]:
    """The sidecar that the database itself uses: its endpoint, and what it is shown.

    Raises:
        InvalidInput: it has none, or this role may not know.
    """
    hint = "give --endpoint host:port, or unix:/path"
    with connect(database_url) as connection:
        try:
            row = connection.execute("SELECT endpoint, token, ca, certificate, key, token_without_tls FROM nv_embed.settings").fetchone()
        except psycopg.errors.InsufficientPrivilege:
            raise InvalidInput("this role may not read where the database's sidecar is", hint=hint) from None
        except psycopg.errors.UndefinedColumn:
            raise InvalidInput("this database has an older nv_embed than this program", hint="update it: nv-embed install --database-url …") from None
        except psycopg.errors.UndefinedTable:
            raise InvalidInput("nv_embed is not installed in this database", hint="run `nv-embed install --database-url …`") from None
    if row is None or row[0] is None:
        raise InvalidInput("no sidecar is configured in this database", hint=hint)
    endpoint, token, ca, certificate, key, token_without_tls = row
    return endpoint, Credentials(token=token, ca=ca, certificate=certificate, key=key, token_without_tls=token_without_tls)
