"""
The evaluation, in order: documents in, queries embedded, then one index after the other with every query.

In:  collections      Out: `Evaluation`, everything that was measured
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nv_embed.evaluation import searches
from nv_embed.evaluation.collection import Collection
from nv_embed.evaluation.errors import EvaluationFailed
from nv_embed.evaluation.plans import Step, steps, stored_as
from nv_embed.evaluation.results import Found, Latency, Measured, Result, ndcg, recall
from nv_embed.evaluation.searches import Tick
from nv_embed.evaluation.served import Model, Server, check_dims, find_model, find_server
from nv_embed.evaluation.statements import Connection
from nv_embed.evaluation.tables import Embedding, Screen, Table, load, own_schema

WAYS_WITH_WORDS = 3
"""Hybrid, full text and BM25."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        dims: to search by; none: all that the model has.
        storages: of the indexes; the first that is no bit is the column's.
        chunk_tokens: of the pieces at most, one embedding of all documents each; 0 is without pieces.
        reuse: a schema that an evaluation has kept.
    """

    dims: Sequence[int] = ()
    storages: Sequence[str] = ("halfvec", "bit")
    model: str | None = None
    chunk_tokens: Sequence[int] = (0,)
    chunk_overlap: int = 0
    keep: bool = False
    reuse: str | None = None


@dataclass
class Evaluation:
    """All that was measured.

    Attributes:
        schema: where the documents are, if they were kept.
    """

    server: Server
    model: Model
    tables: list[Table] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    schema: str | None = None


@dataclass(frozen=True)
class Bench:
    """Where the documents of an evaluation go, and by what they are embedded."""

    connection: Connection
    screen: Screen
    schema: str
    options: Options
    model: Model
    dims: Sequence[int]

    @property
    def kept(self) -> str | None:
        """The schema, if it stays."""
        return self.schema if self.options.keep or self.options.reuse else None

    def load(self, name: str, collection: Collection, chunk_tokens: int = 0) -> Table:
        embedding = Embedding(self.model, stored_as(self.options.storages), chunk_tokens, self.options.chunk_overlap)
        return load(self.connection, self.screen, self.schema, name, collection.documents, embedding)


@contextmanager
def bench(connection: Connection, screen: Screen, options: Options) -> Iterator[tuple[Server, Bench]]:
    """Everything that an evaluation needs, or one line why it cannot be made."""
    server = find_server(connection)
    model = find_model(connection, options.model)
    dims = check_dims(model, options.dims)
    with own_schema(connection, screen, options.reuse, keep=options.keep) as schema:
        if options.keep:
            screen.done(f"documents and vectors go to schema {schema} and stay there")
        yield server, Bench(connection, screen, schema, options, model, dims)


def evaluate(connection: Connection, screen: Screen, collections: Sequence[Collection], options: Options) -> Evaluation:
    """Measure each collection; those that share their documents are searched in one table."""
    with bench(connection, screen, options) as (server, where):
        evaluation = Evaluation(server, where.model, schema=where.kept)
        for group in grouped(collections):
            evaluation.measured += _measure_group(where, group, evaluation.tables)
    return evaluation


def grouped(collections: Sequence[Collection]) -> list[list[Collection]]:
    """Collections over the same documents, together."""
    groups: dict[int, list[Collection]] = {}
    for collection in collections:
        groups.setdefault(id(collection.documents), []).append(collection)
    return list(groups.values())


def _measure_group(where: Bench, group: Sequence[Collection], tables: list[Table]) -> list[Measured]:
    measured: list[Measured] = []
    todo = steps(where.dims, where.options.storages, where.model.native_dim)
    for chunk_tokens in where.options.chunk_tokens:
        table = where.load(" + ".join(each.name for each in group), group[0], chunk_tokens)
        tables.append(table)
        is_first = not measured
        if is_first:
            measured = [begin(where, table, collection) for collection in group]
        possible = [step for step in todo if step.why_not is None]
        ways = sum(len(step.plans) for step in possible) + (WAYS_WITH_WORDS if is_first else 1)
        with where.screen.progress(ways * sum(len(each.queries) for each in group), "searches") as update:
            searching = Round(where.connection, table, group, measured, ticker(update))
            searching.by_vectors(possible)
            searching.by_both()
            if is_first:
                searching.by_words()
    for each in measured:
        each.left_out += [step.why_not for step in todo if step.why_not is not None]
    return measured


def begin(where: Bench, table: Table, collection: Collection) -> Measured:
    """Embed a collection's queries."""
    if not collection.queries:
        raise EvaluationFailed(f"{collection.name} has no query with a known answer")
    latency, cut = searches.embed_queries(where.connection, table, collection)
    return Measured(collection.name, collection.language, len(collection.documents), len(collection.queries), cut, latency)


@dataclass(frozen=True)
class Round:
    """The searches of one table, each for all collections that are over its documents."""

    connection: Connection
    table: Table
    group: Sequence[Collection]
    measured: Sequence[Measured]
    tick: Tick

    def by_vectors(self, todo: Sequence[Step]) -> None:
        sizes = searches.vector_bytes(self.connection, self.table)
        for step in todo:
            with searches.index(self.connection, self.table, step) as made:
                for plan in step.plans:
                    self._add(
                        partial(searches.by_plan, self.connection, self.table, plan, made),
                        text=self.table.embedding.name,
                        dim=plan.dim,
                        storage=plan.storage,
                        rescore=plan.rescore,
                        bytes_per_vector=sizes[plan.dim, plan.storage],
                        build_s=None if made is None else made.build_s,
                        **self._size(None if made is None else made.bytes),
                    )

    def by_words(self) -> None:
        size = self._size(searches.index_words(self.connection, self.table))
        self._add(partial(searches.by_words, self.connection, self.table), **size)
        self._add(searches.by_bm25)

    def by_both(self) -> None:
        size = self._size(searches.index_words(self.connection, self.table))
        self._add(partial(searches.by_both, self.connection, self.table), text=self.table.embedding.name, **size)

    def _add(self, search: Callable[[Collection, Tick], Found], **about: Any) -> None:
        for collection, each in zip(self.group, self.measured, strict=True):
            found = search(collection, self.tick)
            each.results.append(Result(found.plan, ndcg(collection, found), recall(collection, found), Latency.of(found.seconds), **about))

    def _size(self, index_bytes: int | None) -> dict[str, float | None]:
        return {"index_bytes": index_bytes, "index_bytes_per_row": None if index_bytes is None else index_bytes / self.table.rows}


def ticker(update: Callable[[int], None]) -> Tick:
    """What counts one more thing done."""
    done = itertools.count(1)
    return lambda: update(next(done))
