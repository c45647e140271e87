"""
Searches: every query of a collection, one after the other, through SQL.

In:  a table and a plan      Out: what was found, how long each took, and what the server used for it
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import psycopg
from psycopg import sql

from nv_embed.evaluation.collection import Collection
from nv_embed.evaluation.plans import Plan, Step
from nv_embed.evaluation.results import Found, K, Latency
from nv_embed.evaluation.statements import Connection, plain, statement
from nv_embed.evaluation.tables import Table, configuration, configurations
from nv_embed.evaluation.words import Bm25

WARM_UPS = 1
"""Searches without a clock: what a session does once is not what a search takes."""

Tick = Callable[[], None]
"""Called when one more query is answered."""


@dataclass(frozen=True)
class Index:
    """An index of vectors that is there for a while."""

    oid: int
    bytes: int
    build_s: float


def embed_queries(connection: Connection, table: Table, collection: Collection) -> tuple[Latency, int]:
    """Give each query its vector, by the model of the table's vectors; how long that takes, and how many queries had to be cut for it."""
    connection.execute(plain("question"))
    connection.execute("DELETE FROM pg_temp.nv_embed_question WHERE collection = %s", [collection.name])
    seconds, cut = [], 0
    for id, text in collection.queries.items():
        arguments = {"collection": collection.name, "id": id, "text": text, "relation": table.relation, "model": table.embedding.model.name}
        begun = time.perf_counter()
        try:
            connection.execute(plain("embed"), arguments)
            seconds.append(time.perf_counter() - begun)
        except psycopg.errors.InvalidParameterValue:
            connection.execute(plain("embed_cut"), arguments)
            cut += 1
    connection.execute("ANALYZE pg_temp.nv_embed_question")
    return Latency.of(seconds), cut


@contextmanager
def index(connection: Connection, table: Table, step: Step) -> Iterator[Index | None]:
    """The index of a step while its searches run, and no other."""
    drop_indexes(connection, table)
    if not step.is_indexed:
        yield None
        return
    begun = time.perf_counter()
    (create,) = _one(
        connection,
        "SELECT nv_embed.create_index_sql(%s, dim => %s, storage => %s, concurrently => false)",
        [table.relation, step.dim, step.storage],
    )
    connection.execute(create)
    build_s = time.perf_counter() - begun
    oid, size = _one(connection, "SELECT index::oid, bytes FROM nv_embed.vector_indexes(%s)", [table.relation])
    yield Index(oid, size, build_s)
    drop_indexes(connection, table)


def drop_indexes(connection: Connection, table: Table) -> None:
    for (name,) in connection.execute("SELECT index::text FROM nv_embed.vector_indexes(%s)", [table.relation]).fetchall():
        connection.execute(sql.SQL("DROP INDEX {}").format(sql.SQL(name)))


def by_plan(connection: Connection, table: Table, plan: Plan, made: Index | None, collection: Collection, tick: Tick) -> Found:
    """Search by a plan, and say how many searches really read the index."""
    arguments = {"collection": collection.name, "k": K, "dim": plan.dim, "rescore": plan.rescore}
    with connection.transaction():
        before = _scans(connection, made)
        found = _each(connection, table, "search", plan.name, arguments, collection, tick)
        scans = _scans(connection, made) - before
    return replace(found, plan=what_ran(plan, scans, len(collection.queries) + WARM_UPS))


def what_ran(plan: Plan, scans: int, count: int) -> str:
    """The plan's name, unless the server answered some of the searches without the index."""
    return plan.name if not plan.is_indexed or scans >= count else f"{plan.name} ({scans} of {count} by the index)"


def by_plan_at_once(connection: Connection, table: Table, plan: Plan, collection: Collection) -> Found:
    """The same, but for the times."""
    rows = connection.execute(
        statement("search_all", table=table.identifier), {"collection": collection.name, "k": K, "dim": plan.dim, "rescore": plan.rescore}
    ).fetchall()
    return Found(plan.name, dict(rows))


def by_bm25(collection: Collection, tick: Tick) -> Found:
    words = Bm25(collection.documents, collection.language)
    return _timed("BM25", lambda _, text: words.search(text, K), collection, tick)


def index_words(connection: Connection, table: Table) -> int:
    """Prepare the table for full text, once; the bytes of its index."""
    connection.execute(statement("words", table=table.identifier, relation=sql.Literal(table.relation)))
    return int(_one(connection, plain("words_bytes"), {"relation": table.relation})[0])


def by_words(connection: Connection, table: Table, collection: Collection, tick: Tick) -> Found:
    return _each(connection, table, "by_words", "full text", _worded(connection, collection), collection, tick)


def by_both(connection: Connection, table: Table, collection: Collection, tick: Tick) -> Found:
    return _each(connection, table, "hybrid", "exact + full text", _worded(connection, collection), collection, tick)


def vector_bytes(connection: Connection, table: Table) -> dict[tuple[int, str], float]:
    """Bytes of a vector by dimension and type, as Postgres measures them."""
    rows = connection.execute("SELECT dim, storage, bytes FROM nv_embed.storage_report(%s) WHERE part LIKE '%%vectors'", [table.relation]).fetchall()
    return {(dim, storage): size / table.vectors for dim, storage, size in rows}


def _worded(connection: Connection, collection: Collection) -> dict[str, Any]:
    return {"collection": collection.name, "k": K, "language": configuration(collection.language, configurations(connection))}


def _each(connection: Connection, table: Table, name: str, plan: str, arguments: Mapping[str, Any], collection: Collection, tick: Tick) -> Found:
    """Run the statement of this name for each query."""
    search = statement(name, table=table.identifier).as_string(connection).encode()

    def find(id: str, text: str) -> list[str]:
        return [row[0] for row in connection.execute(search, {**arguments, "id": id, "text": text}).fetchall()]

    return _timed(plan, find, collection, tick)


def _timed(plan: str, find: Callable[[str, str], list[str]], collection: Collection, tick: Tick) -> Found:
    ids, seconds = {}, []
    for id, text in islice(collection.queries.items(), WARM_UPS):
        find(id, text)
    for id, text in collection.queries.items():
        begun = time.perf_counter()
        ids[id] = find(id, text)
        seconds.append(time.perf_counter() - begun)
        tick()
    return Found(plan, ids, seconds)


def _scans(connection: Connection, made: Index | None) -> int:
    """How often the index was read, of what this transaction knows already."""
    return 0 if made is None else int(_one(connection, "SELECT pg_stat_get_xact_numscans(%s)", [made.oid])[0])


def _one(connection: Connection, query: Any, arguments: Any) -> tuple[Any, ...]:
    return connection.execute(query, arguments).fetchall()[0]
