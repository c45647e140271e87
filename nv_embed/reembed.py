"""
Re-embedding, driven from outside of the database.

The database knows how far a re-embedding is (`sql/functions/reembed.sql`), and workers fill its next generation. What is left to whoever drives it
is to ask until the next state is reached, to build indexes, each in a transaction of its own, and to cut over. So it may be interrupted, or killed,
at any time: whoever drives next goes on from what the database says.

In:  two connections in autocommit mode      Out: the last state, and on the way there whatever a `Watcher` is told
"""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import timedelta
from typing import Any, Protocol

import psycopg

from nv_embed.indexes import SERVERS, Resources, build_steps
from nv_embed.indexes import Watcher as IndexWatcher

Connection = psycopg.Connection[Any]

LOOK_S = 0.25


class Ended(Exception):
    """Somebody has ended a re-embedding, so that it will not be cut over; the message says what to do."""


@dataclass(frozen=True)
class Wanted:
    """What an embedding is to become; None leaves what is.

    Attributes:
        relation: the table's name, as SQL reads it.
        rows_per_s: how many rows workers may take of it, all together.
        min_overlap, min_recall: what it is not ready under, from 0 to 1; None is no limit.
        chunk_tokens: of a piece at most; 0 embeds rows whole.
    """

    relation: str
    target: str = "embedding"
    model: str | None = None
    dim: int | None = None
    storage: str | None = None
    rows_per_s: float | None = None
    min_overlap: float | None = None
    min_recall: float | None = None
    source: str | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None


@dataclass(frozen=True)
class Estimate:
    """What it will take.

    Attributes:
        rows: with content.
        is_cut: whether vectors are cut to size in the database, without a model.
        tokens, seconds: of the model, by a sample; None where the database cannot ask a sidecar.
        vector_bytes, index_bytes: beside the present ones; of vectors None where nobody knows into how many pieces rows will be cut.
    """

    rows: int | None
    is_cut: bool
    tokens: int | None
    seconds: float | None
    vector_bytes: int | None
    index_bytes: int


@dataclass(frozen=True)
class Status:
    """How far a re-embedding is.

    Attributes:
        rows, embedded: None until the table has been counted.
        rate: rows a second now.
        overlap, recall: what was measured before it was ready: the share of nearest neighbours that stay, and of canaries that are found.
        has_ended: the generation that is not live is gone.
        workers: that have shown up lately.
    """

    id: int
    relation: str
    target: str
    state: str
    from_model: str | None
    from_dim: int | None
    from_storage: str | None
    to_model: str | None
    to_dim: int | None
    to_storage: str | None
    to_source: str | None
    to_chunk_tokens: int | None
    to_chunk_overlap: int | None
    rows: int | None
    embedded: int | None
    pending: int | None
    failed: int
    rate: float
    eta: timedelta | None
    overlap: float | None
    recall: float | None
    has_ended: bool
    workers: int


class Watcher(IndexWatcher, Protocol):
    def status(self, status: Status) -> None:
        """How far the filling is."""


STATUS = """
    SELECT r.id, nv_embed.qualified(r.relation), r.target, r.state, r.from_model, r.from_dim, r.from_storage, r.to_model, r.to_dim, r.to_storage,
        r.to_source, r.to_chunk_tokens, r.to_chunk_overlap,
        r.rows, r.embedded, r.pending, r.failed, r.rate, r.eta, r.overlap, r.recall, r.ended_at IS NOT NULL,
        (
            SELECT count(*) FROM nv_embed.living_workers() AS w WHERE nv_embed.may_embed(w.role_name, r.relation)
        )
    FROM nv_embed.reembedding_status AS r
"""


def estimate(connection: Connection, wanted: Wanted) -> Estimate:
    row = connection.execute(
        "SELECT * FROM nv_embed.estimate_reembed(%s::regclass, %s, %s, %s, %s, %s, %s, %s)",
        [wanted.relation, wanted.target, wanted.model, wanted.dim, wanted.storage, wanted.source, wanted.chunk_tokens, wanted.chunk_overlap],
    ).fetchone()
    assert row is not None
    return Estimate(*row)


def find_open(connection: Connection, relation: str, target: str) -> Status | None:
    """The re-embedding of a table that has not ended."""
    row = connection.execute(f"{STATUS} WHERE r.relation = %s::regclass AND r.target = %s AND r.ended_at IS NULL", [relation, target]).fetchone()
    return None if row is None else Status(*row)


def status(connection: Connection, id: int) -> Status:
    row = connection.execute(f"{STATUS} WHERE r.id = %s", [id]).fetchone()
    assert row is not None
    return Status(*row)


def differences(connection: Connection, found: Status, wanted: Wanted) -> list[str]:
    """Names of what is asked for that is not what a re-embedding which is under way makes."""
    model = wanted.model and model_name(connection, wanted.model)
    return [
        name
        for name, asked, has in (
            ("model", model, found.to_model),
            ("dim", wanted.dim, found.to_dim),
            ("storage", wanted.storage, found.to_storage),
            ("source", wanted.source, found.to_source),
            ("chunk_tokens", wanted.chunk_tokens, found.to_chunk_tokens or 0),
            ("chunk_overlap", wanted.chunk_overlap, found.to_chunk_overlap),
        )
        if asked is not None and asked != has
    ]


def begin(connection: Connection, wanted: Wanted) -> int:
    """Returns its id."""
    row = connection.execute(
        "SELECT nv_embed.reembed(%s::regclass, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
        astuple(wanted),
    ).fetchone()
    assert row is not None
    return int(row[0])


def alter(connection: Connection, id: int, wanted: Wanted) -> None:
    """Have a re-embedding that is under way go by other limits."""
    connection.execute("SELECT nv_embed.alter_reembedding(%s, %s, %s, %s)", [id, wanted.rows_per_s, wanted.min_overlap, wanted.min_recall])


def model_name(connection: Connection, model: str) -> str:
    """The whole name of a model that is served."""
    row = connection.execute("SELECT model FROM nv_embed.identify(NULL, %s)", [model]).fetchone()
    assert row is not None
    return str(row[0])


def drive(connection: Connection, watching: Connection, id: int, watcher: Watcher, resources: Resources = SERVERS) -> Status:
    """Bring a re-embedding to where it can be cut over, or was by somebody else.

    Args:
        connection: for what is done.
        watching: for looks at it, of the same role.
        resources: that building the indexes may take.
    Raises:
        Ended: it was cancelled or rolled back, be it meanwhile.
        Busy, Unfinished: of an index.
        psycopg.Error
    """
    while True:
        state = advance(connection, id)
        now = status(connection, id)
        check_goes_on(now)
        if state == "indexing":
            build_steps(connection, watching, (now.relation, now.target), _steps(connection, id), watcher, resources)
        elif state == "backfilling":
            watcher.status(now)
            time.sleep(LOOK_S)
        elif state != "verifying":
            return now


def check_goes_on(now: Status) -> None:
    """
    Raises:
        Ended: it was cancelled or rolled back.
    """
    if now.state == "cancelled":
        raise Ended(f"re-embedding {now.id} of {now.relation} was cancelled: begin another one")
    if now.state == "rolled_back":
        raise Ended(f"re-embedding {now.id} of {now.relation} was rolled back: finish it, and begin another one")


def advance(connection: Connection, id: int) -> str:
    row = connection.execute("SELECT nv_embed.advance_reembedding(%s)", [id]).fetchone()
    assert row is not None
    return str(row[0])


def cut_over(connection: Connection, id: int) -> None:
    connection.execute("SELECT nv_embed.cut_over(%s)", [id])


def roll_back(connection: Connection, id: int) -> None:
    connection.execute("SELECT nv_embed.roll_back(%s)", [id])


def finish(connection: Connection, id: int) -> None:
    connection.execute("SELECT nv_embed.finish(%s)", [id])


def cancel(connection: Connection, id: int) -> None:
    connection.execute("SELECT nv_embed.cancel(%s)", [id])


def _steps(connection: Connection, id: int) -> Callable[[], list[str]]:
    return lambda: [step for (step,) in connection.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id])]
