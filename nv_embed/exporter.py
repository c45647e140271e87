"""
What Prometheus is told of a worker and of its database.

What the worker has done is counted by its lanes; how far embeddings and re-embeddings are is asked of the database when Prometheus asks, with the
worker's own rights. Every worker tells the whole database's state, so one of them is enough to know it.

In:  a worker's counts, a database      Out: Prometheus's text over HTTP
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nv_embed.counts import Counts
from nv_embed.errors import InvalidInput

Connection = psycopg.Connection[Any]

TIMEOUT_MS = 5000
"""For one look at the database: Prometheus itself gives up after ten seconds."""

CONNECTION: Mapping[str, Any] = {
    "connect_timeout": 3,
    "tcp_user_timeout": TIMEOUT_MS,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
"""As libpq takes it: a database whose host is gone is away before Prometheus gives up; by itself the kernel waits for a quarter of an hour."""

STATUS = """
    SELECT nv_embed.qualified(relation), target, rows, embedded, pending, failed, coverage, extract(epoch FROM oldest_pending_age), rate
    FROM nv_embed.status
"""
STATUS_GAUGES = (
    ("nv_embed_rows", "Rows of a table that is embedded."),
    ("nv_embed_rows_embedded", "Rows that have the vector of their present text."),
    ("nv_embed_rows_pending", "Rows that wait for a worker."),
    ("nv_embed_rows_failed", "Rows that were given up; nv_embed.failures says why."),
    ("nv_embed_coverage", "Embedded rows, as a share of those with content."),
    ("nv_embed_oldest_pending_seconds", "For how long the row has waited that has for longest; the lag."),
    ("nv_embed_rows_per_second", "Rows that the workers embed now."),
)

REEMBEDDING = """
    SELECT nv_embed.qualified(relation), target, state, progress, pending, failed, rate FROM nv_embed.reembedding_status WHERE ended_at IS NULL
"""
REEMBEDDING_GAUGES = (
    ("nv_embed_reembedding_progress", "Of a re-embedding that goes on: rows that have their new vector, as a share."),
    ("nv_embed_reembedding_rows_pending", "Rows that wait for their new vector."),
    ("nv_embed_reembedding_rows_failed", "Rows that got none."),
    ("nv_embed_reembedding_rows_per_second", "Rows that the workers embed anew."),
)


def serve(address: str, counts: Counts, connect: Callable[..., Connection]) -> tuple[str, Callable[[], None]]:
    """Answer Prometheus at `host:port`, in threads. Returns the address with its real port, and what ends it.

    Args:
        connect: to the database, with settings of libpq as keywords.
    Raises:
        InvalidInput: the address is none, or taken.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"'{address}' is not an address", hint="give host:port, or host:0 for any free port")
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(_Done(counts))
    registry.register(_Database(connect))
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise InvalidInput(f"cannot listen on {address}: {error.strerror}", hint="is another program listening there, and may this user?") from None

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return f"{host}:{server.server_port}", close


class _Done(Collector):
    """What the lanes have done."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        families = [
            CounterMetricFamily("nv_embed_worker_claimed_rows", "Rows that this worker took from the queue.", labels=["relation"]),
            CounterMetricFamily("nv_embed_worker_embedded_rows", "Rows that this worker embedded.", labels=["relation"]),
            CounterMetricFamily("nv_embed_worker_failed_rows", "Rows that this worker gave up.", labels=["relation"]),
        ]
        done: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for count in self._counts.by_generation().values():
            done[count.relation] = [
                so_far + more for so_far, more in zip(done[count.relation], (count.claimed, count.embedded, count.failed), strict=True)
            ]
        for relation, values in done.items():
            for family, value in zip(families, values, strict=True):
                family.add_metric([relation], value)
        return list(families)


class _Database(Collector):
    """How far embeddings and re-embeddings are."""

    def __init__(self, connect: Callable[..., Connection]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def collect(self) -> Iterable[Metric]:
        found = self._found()
        up = GaugeMetricFamily("nv_embed_database_up", "1 where the database could be asked, else 0.")
        up.add_metric([], 0 if found is None else 1)
        return [up, *(found or ())]

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked of the database for that."""
        return []

    def _found(self) -> list[Metric] | None:
        """What the database says; None where it cannot be asked, or has let somebody wait for all that time."""
        if not self._lock.acquire(timeout=TIMEOUT_MS / 1000):
            return None
        try:
            return [
                *self._asked(STATUS, STATUS_GAUGES, ["relation", "target"]),
                *self._asked(REEMBEDDING, REEMBEDDING_GAUGES, ["relation", "target", "state"]),
            ]
        except psycopg.Error:
            # Connect anew next time.
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return None
        finally:
            self._lock.release()

    def _asked(self, query: str, gauges: Sequence[tuple[str, str]], labels: Sequence[str]) -> list[Metric]:
        if self._connection is None:
            self._connection = self._connect(**CONNECTION)
            self._connection.execute(f"SET statement_timeout = {TIMEOUT_MS}")
        families = [GaugeMetricFamily(name, what, labels=labels) for name, what in gauges]
        for row in self._connection.execute(query):
            for family, value in zip(families, row[len(labels) :], strict=True):
                if value is not None:
                    family.add_metric([str(label) for label in row[: len(labels)]], float(value))
        return list(families)
