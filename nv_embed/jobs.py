"""
The queue, as Python sees it.

Each method is one call of an SQL function of the same name (`sql/functions/job.sql`). Keys stay as the database wrote them. Vectors travel as binary
arrays of pgvector's types.

In:  a connection of the worker's, in autocommit mode      Out: `Job`s and their `Text`s
"""

import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import numpy
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

Connection = psycopg.Connection[Any]

# Keys and texts must not depend on how a session likes its numbers, dates, hours and bytes. What the user's own triggers change
# while vectors are written is queued, whatever mode is declared, and a lane does not wait long for a lock.
SESSION = """
    SET extra_float_digits = 3; SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC';
    SET bytea_output = 'hex'; SET nv_embed.mode = 'async'; SET lock_timeout = '500ms'
"""

KEEPALIVES: Mapping[str, Any] = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""Of a connection, as libpq takes it: a server that has gone without a word holds a thread for some seconds, not for hours."""

RELEASE_PAUSES_S = (0.0, 0.02, 0.05)
"""Before each try to release jobs that another worker may hold for a moment."""

COMPONENTS = {"halfvec": ">f2", "vector": ">f4"}


@dataclass(frozen=True)
class Generation:
    """Vectors that workers keep up to date.

    Attributes:
        relation: the table's name, for messages.
        chunk_tokens: of a piece at most; None where a row is embedded whole.
        is_live: whether it answers searches; else nobody reads it yet, or any more.
        is_backfilling: whether rows that the table had before may still be unqueued.
        is_limited: whether that goes by so many rows a second, so that there may be nothing to queue just now.
    """

    id: int
    relation: str
    model: str
    revision: str
    dim: int
    storage: str
    truncate: str
    chunk_tokens: int | None
    chunk_overlap: int
    is_live: bool
    is_backfilling: bool
    is_limited: bool


@dataclass(frozen=True)
class Job:
    generation: int
    key: str
    id: int
    attempts: int


@dataclass(frozen=True)
class Text:
    """What the row of a job reads.

    Attributes:
        size: in bytes; None where the row has no content, or is gone.
        text: None where there is none, or its size is over the limit.
        digest: of the text; None where the row is gone.
        pieces: characters [start, end) of each piece; None where a row is embedded whole.
    """

    job: Job
    size: int | None = None
    text: str | None = None
    digest: bytes | None = None
    pieces: tuple[tuple[int, int], ...] | None = None

    @property
    def passages(self) -> list[str]:
        """What is embedded of it: itself, or its pieces."""
        if self.text is None:
            return []
        return [self.text] if self.pieces is None else [self.text[start:end] for start, end in self.pieces]


class Written(NamedTuple):
    """What came of texts whose vectors were to be written.

    Attributes:
        settled: how many have them, or need none any more.
        unsettled: the places of those that somebody held. They are due again in a second, or when their lease is over where the job was held, and can
            be written once more until then.
    """

    settled: int
    unsettled: list[int]


class VectorArray:
    """Vectors as Postgres reads them: a binary array.

    Args:
        vectors: [n, dim] float32.
        storage: vector or halfvec.
        oid: that type's.
    """

    def __init__(self, vectors: NDArray[numpy.float32], storage: str, oid: int) -> None:
        count, dim = vectors.shape
        component = numpy.dtype(COMPONENTS[storage])
        rows = numpy.zeros(count, [("size", ">i4"), ("dim", ">i2"), ("unused", ">i2"), ("components", component, (dim,))])
        rows["size"], rows["dim"], rows["components"] = 4 + dim * component.itemsize, dim, vectors
        self.data = struct.pack(">iiIii", 1, 0, oid, count, 1) + rows.tobytes()


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: VectorArray) -> bytes:
        return obj.data


def connect(database_url: str, **settings: Any) -> Connection:
    """Of several hosts the one that can be written to; a standby is refused, since nothing can be claimed there. Settings are those of libpq."""
    ours = {"connect_timeout": 10, "application_name": "nv-embed worker", "target_session_attrs": "read-write", **KEEPALIVES}
    return psycopg.connect(database_url, autocommit=True, **{**ours, **settings})


class Queue:
    """The jobs of a database, over one connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        connection.execute(SESSION)
        self._types: dict[str, tuple[type[VectorArray], int]] = {}
        for storage, oid, array_oid in connection.execute("SELECT * FROM nv_embed.vector_types()"):
            array = type(storage, (VectorArray,), {})
            connection.adapters.register_dumper(array, type(f"{storage}_dumper", (_Dumper,), {"oid": array_oid}))
            self._types[storage] = (array, oid)

    def work(self) -> list[Generation]:
        return [Generation(*row) for row in self.connection.execute("SELECT * FROM nv_embed.work()")]

    def claim(self, generations: Sequence[int], most: int, lease_s: float) -> list[Job]:
        rows = self.connection.execute("SELECT * FROM nv_embed.claim(%s::bigint[], %s, %s)", [list(generations), most, timedelta(seconds=lease_s)])
        return [Job(*row) for row in rows]

    def claim_range(self, generation: int, most: int, lease_s: float) -> tuple[list[Job], bool]:
        """Of the rows that a table had before, the next in the order of their keys, and whether that was the last of them.

        There may be no jobs although it was not: somebody else takes a step, or what may be taken in a second is used up.
        """
        row = self.connection.execute("SELECT * FROM nv_embed.claim_range(%s, %s, %s)", [generation, most, timedelta(seconds=lease_s)]).fetchone()
        assert row is not None
        keys, ids, is_last = row
        return [Job(generation, key, id, 0) for key, id in zip(keys, ids, strict=True)], is_last

    def read(self, generation: int, jobs: Sequence[Job], most_bytes: int) -> list[Text]:
        """What the rows of jobs of one generation read, in their order."""
        rows = self.connection.execute("SELECT * FROM nv_embed.read(%s, %s, %s)", [generation, [job.key for job in jobs], most_bytes])
        found = {place: Text(jobs[place - 1], size, text, digest) for place, size, text, digest in rows}
        return [found.get(place, Text(job)) for place, job in enumerate(jobs, 1)]

    def write_back(self, generation: Generation, texts: Sequence[Text], vectors: NDArray[numpy.float32]) -> Written:
        """Write the vectors of all passages of the texts, [n, dim] of unit length."""
        keys, ids, digests = _columns(texts)
        if generation.chunk_tokens is not None:
            pieces = [(place, start, end) for place, text in enumerate(texts, 1) for start, end in text.pieces or ()]
            places, starts, ends = ([piece[column] for piece in pieces] for column in range(3))
            return self._written(
                "SELECT * FROM nv_embed.write_back_chunks(%s, %s, %s, %s, %s::int[], %s::int[], %s::int[], %b)",
                [generation.id, keys, ids, digests, places, starts, ends, self._array(generation, vectors)],
            )
        if not len(vectors):
            array: Any = [None] * len(texts)
            return self._written("SELECT * FROM nv_embed.write_back(%s, %s, %s, %s, %s::text[])", [generation.id, keys, ids, digests, array])
        return self._written(
            "SELECT * FROM nv_embed.write_back(%s, %s, %s, %s, %b)", [generation.id, keys, ids, digests, self._array(generation, vectors)]
        )

    def give_up(self, generation: int, texts: Sequence[Text], error: str, messages: Sequence[str]) -> int:
        keys, ids, digests = _columns(texts)
        return self._count("SELECT nv_embed.give_up(%s, %s, %s, %s, %s, %s)", [generation, keys, ids, digests, error, list(messages)])

    def fail(self, generation: int, jobs: Sequence[Job], error: str, messages: Sequence[str], retry_in_s: float | None) -> None:
        """Count an attempt. Tried again after so many seconds, or never."""
        retry_in = None if retry_in_s is None else timedelta(seconds=retry_in_s)
        keys, ids = [job.key for job in jobs], [job.id for job in jobs]
        self.connection.execute("SELECT nv_embed.fail(%s, %s, %s::bigint[], %s, %s, %s)", [generation, keys, ids, error, list(messages), retry_in])

    def release(self, jobs: Sequence[Job], lease_s: float = 0.0) -> list[Job]:
        """Another lease from now, for jobs of any generations; one of no length gives them back. Returns those that are not ours any more."""
        left = list(jobs)
        for pause_s in RELEASE_PAUSES_S:
            time.sleep(pause_s)
            left = [job for generation in {job.generation for job in left} for job in self._release(generation, left, lease_s)]
            if not left:
                break
        return left

    def _release(self, generation: int, jobs: Sequence[Job], lease_s: float) -> list[Job]:
        """Those of one generation that could not be released."""
        mine = [job for job in jobs if job.generation == generation]
        row = self.connection.execute(
            "SELECT nv_embed.release(%s, %s, %s::bigint[], %s)",
            [generation, [job.key for job in mine], [job.id for job in mine], timedelta(seconds=lease_s)],
        ).fetchone()
        assert row is not None
        released = set(row[0])
        return [job for place, job in enumerate(mine, 1) if place not in released]

    def backfill_step(self, generation: int) -> int | None:
        row = self.connection.execute("SELECT nv_embed.backfill_step(%s)", [generation]).fetchone()
        assert row is not None
        queued: int | None = row[0]
        return queued

    def beat(self, id: int | None, name: str, is_waiting: bool, rates: Any) -> int:
        return self._count("SELECT nv_embed.beat(%s, %s, %s, %s)", [id, name, is_waiting, rates])

    def leave(self, id: int) -> None:
        self.connection.execute("SELECT nv_embed.leave(%s)", [id])

    def _array(self, generation: Generation, vectors: NDArray[numpy.float32]) -> VectorArray:
        kind, oid = self._types[generation.storage]
        return kind(vectors, generation.storage, oid)

    def _written(self, query: Any, arguments: Sequence[Any]) -> Written:
        row = self.connection.execute(query, arguments).fetchone()
        assert row is not None
        settled, unsettled = row
        return Written(settled, sorted(place - 1 for place in unsettled))

    def _count(self, query: Any, arguments: Sequence[Any]) -> int:
        row = self.connection.execute(query, arguments).fetchone()
        assert row is not None
        return int(row[0])


def _columns(texts: Sequence[Text]) -> tuple[list[str], list[int], list[bytes | None]]:
    return [text.job.key for text in texts], [text.job.id for text in texts], [text.digest for text in texts]
