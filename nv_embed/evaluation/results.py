"""
What was measured, as values.

In:  what a search found and how long it took      Out: `Result`s, a line of the table each
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nv_embed.evaluation.collection import Collection
from nv_embed.evaluation.scoring import ndcg_at, recall_at

K = 10
RECALL_K = 5

WHOLE = "whole"
"""How documents are embedded that are not cut into pieces."""


@dataclass(frozen=True)
class Found:
    """What one way to search found for a collection's queries.

    Attributes:
        plan: what ran.
        ids: best first, by the query's id.
        seconds: of each search.
    """

    plan: str
    ids: Mapping[str, Sequence[str]]
    seconds: Sequence[float] = ()


@dataclass(frozen=True)
class Latency:
    median_ms: float
    p95_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        ordered = sorted(seconds) or [0.0]
        return cls(1000 * statistics.median(ordered), 1000 * ordered[max(-(-95 * len(ordered) // 100) - 1, 0)])


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        plan: what ran.
        text: how documents were embedded; empty for what has nothing to do with vectors.
        dim, storage: of the vectors that are compared first.
        bytes_per_vector: of these, by pg_column_size.
        index_bytes_per_row: of the index that answered, over the documents.
    """

    plan: str
    ndcg_at_10: float
    recall_at_5: float
    latency: Latency
    text: str = ""
    dim: int | None = None
    storage: str | None = None
    rescore: bool | None = None
    bytes_per_vector: float | None = None
    index_bytes: int | None = None
    index_bytes_per_row: float | None = None
    build_s: float | None = None


@dataclass
class Measured:
    """A collection's table.

    Attributes:
        cut_queries: those that are longer than the model reads, and were cut at the end.
        query_latency: of embedding one of the others, through SQL.
        left_out: what could not be measured, and why.
    """

    collection: str
    language: str
    documents: int
    queries: int
    cut_queries: int
    query_latency: Latency
    results: list[Result] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def ndcg(collection: Collection, found: Found) -> float:
    return statistics.fmean(ndcg_at(found.ids.get(query, ()), collection.grades[query], K) for query in collection.queries)


def recall(collection: Collection, found: Found) -> float:
    return statistics.fmean(recall_at(found.ids.get(query, ()), collection.grades[query], RECALL_K) for query in collection.queries)
