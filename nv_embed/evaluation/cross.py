"""
Questions in one language, answers in another.

Parallel collections have equal ids, so every collection's queries have known answers in every other's documents. Each corpus and each language's
queries are embedded once.

In:  N parallel collections      Out: N × N figures, for each dimension
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from nv_embed.evaluation import searches
from nv_embed.evaluation.collection import Collection
from nv_embed.evaluation.errors import EvaluationFailed
from nv_embed.evaluation.plans import Plan, stored_as
from nv_embed.evaluation.results import recall
from nv_embed.evaluation.run import Bench, Evaluation, Options, begin, bench, ticker
from nv_embed.evaluation.searches import Tick
from nv_embed.evaluation.statements import Connection
from nv_embed.evaluation.tables import Screen, Table

FEWEST = 2


@dataclass(frozen=True)
class Matrix:
    """Recall@5 of exact search.

    Attributes:
        names: of the languages, in the order of lines and columns.
        recall_at_5: a line for each language of the queries, a column for each of the documents.
        bm25_recall_at_5: of each language's queries on its own documents.
    """

    dim: int
    names: Sequence[str]
    recall_at_5: Sequence[Sequence[float]]
    bm25_recall_at_5: Sequence[float]

    @property
    def same_language(self) -> float:
        return statistics.fmean(line[place] for place, line in enumerate(self.recall_at_5))

    @property
    def cross_lingual(self) -> float:
        return statistics.fmean(value for place, line in enumerate(self.recall_at_5) for other, value in enumerate(line) if other != place)


def evaluate(connection: Connection, screen: Screen, collections: Sequence[Collection], options: Options) -> tuple[Evaluation, list[Matrix]]:
    """Search the documents of each collection by the queries of each: by the model's whole vectors, unless other dimensions are asked for."""
    if len(collections) < FEWEST:
        raise EvaluationFailed("cross-lingual search needs parallel collections: give the folders of two or more, or the folder that holds them")
    with bench(connection, screen, options) as (server, where):
        tables = [where.load(each.name, each) for each in collections]
        measured = [begin(where, table, each) for table, each in zip(tables, collections, strict=True)]
        dims = where.dims if options.dims else [where.model.native_dim]
        matrices = _matrices(where, tables, collections, dims)
    return Evaluation(server, where.model, tables, measured, where.kept), matrices


def _matrices(where: Bench, tables: Sequence[Table], collections: Sequence[Collection], dims: Sequence[int]) -> list[Matrix]:
    languages = [each.language for each in collections]
    names = languages if len(set(languages)) == len(languages) else [each.name for each in collections]
    by_words = [recall(each, searches.by_bm25(each, lambda: None)) for each in collections]
    with where.screen.progress(len(dims) * len(collections) ** 2, "pairs") as update:
        tick = ticker(update)
        exact = [Plan(dim, stored_as(where.options.storages), False, dim == where.model.native_dim, where.model.native_dim) for dim in dims]
        return [Matrix(plan.dim, names, _matrix(where.connection, tables, collections, plan, tick), by_words) for plan in exact]


def _matrix(connection: Connection, tables: Sequence[Table], collections: Sequence[Collection], plan: Plan, tick: Tick) -> list[list[float]]:
    def pair(asking: Collection, table: Table, asked: Collection) -> float:
        found = searches.by_plan_at_once(connection, table, plan, asking)
        tick()
        return recall(asked.asked_by(asking.name, asking.queries), found)

    return [[pair(asking, table, asked) for table, asked in zip(tables, collections, strict=True)] for asking in collections]
