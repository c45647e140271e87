"""
The evaluation for people and for programs.

In:  what was measured      Out: rows of a table, or values for JSON
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nv_embed.evaluation.cross import Matrix
from nv_embed.evaluation.results import WHOLE, Measured, Result
from nv_embed.evaluation.run import Evaluation
from nv_embed.evaluation.tables import Table

COLUMNS = ("plan", "dim", "storage", "nDCG@10", "Recall@5", "median", "p95", "bytes/vector", "index bytes/document")
"""Of the table of a collection."""


def heading(evaluation: Evaluation, measured: Measured) -> str:
    return f"{measured.collection}: {measured.documents:,} documents, {measured.queries:,} queries, {evaluation.model.name}"


def remarks(evaluation: Evaluation, measured: Measured) -> list[str]:
    """What the table does not say."""
    latency, model, server = measured.query_latency, evaluation.model, evaluation.server
    return [
        f"Embedding a query, through SQL: median {latency.median_ms:.1f} ms, p95 {latency.p95_ms:.1f} ms. The times above are of the search alone.",
        f"{model.name}, revision {model.revision}, {model.native_dim} dimensions, {model.max_tokens} tokens, on {model.device} in {model.precision}; "
        f"PostgreSQL {server.postgres}, pgvector {server.pgvector}, nv_embed {server.nv_embed}.",
        *([f"{measured.cut_queries:,} queries are longer than that and were cut at the end."] if measured.cut_queries else []),
        *(f"Left out: {why}." for why in measured.left_out),
    ]


def columns(measured: Measured) -> Sequence[str]:
    return ("plan", "documents", *COLUMNS[1:]) if _is_by_text(measured) else COLUMNS


def rows(measured: Measured) -> list[Sequence[str]]:
    by_text = _is_by_text(measured)
    return [_row(each, by_text) for each in measured.results]


def _is_by_text(measured: Measured) -> bool:
    """Whether documents were embedded in more than one way, or in pieces."""
    return {each.text for each in measured.results if each.text} != {WHOLE}


def _row(result: Result, by_text: bool) -> Sequence[str]:
    return (
        result.plan,
        *([result.text] if by_text else []),
        _or_nothing(result.dim, "{:,}"),
        result.storage or "",
        f"{result.ndcg_at_10:.4f}",
        f"{result.recall_at_5:.4f}",
        f"{result.latency.median_ms:.2f} ms",
        f"{result.latency.p95_ms:.2f} ms",
        _or_nothing(result.bytes_per_vector, "{:,.0f}"),
        _or_nothing(result.index_bytes_per_row, "{:,.0f}"),
    )


def _or_nothing(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def matrix_columns(matrix: Matrix) -> Sequence[str]:
    return ("queries", *matrix.names)


def matrix_rows(matrix: Matrix) -> list[Sequence[str]]:
    """A line for each language of the queries, a column for each of the documents, and BM25 below, which knows no other language than its own."""
    return [
        *((name, *(f"{value:.3f}" for value in line)) for name, line in zip(matrix.names, matrix.recall_at_5, strict=True)),
        ("BM25", *(f"{value:.3f}" for value in matrix.bm25_recall_at_5)),
    ]


def as_json(evaluation: Evaluation, matrices: Sequence[Matrix] = ()) -> Mapping[str, Any]:
    """Everything measured."""
    return {
        "model": asdict(evaluation.model),
        "server": asdict(evaluation.server),
        "schema": evaluation.schema,
        "tables": [_table(each) for each in evaluation.tables],
        "collections": [asdict(each) for each in evaluation.measured],
        "cross": [{**asdict(each), "same_language": each.same_language, "cross_lingual": each.cross_lingual} for each in matrices],
    }


def _table(table: Table) -> Mapping[str, Any]:
    return {
        "collections": table.name,
        "relation": table.relation,
        "documents": table.rows,
        "vectors": table.vectors,
        "storage": table.embedding.storage,
        "chunk_tokens": table.embedding.chunk_tokens or None,
        "chunk_overlap": table.embedding.chunk_overlap if table.embedding.chunk_tokens else None,
        "load_s": table.load_s,
        "documents_per_s": None if table.load_s is None else table.rows / table.load_s,
    }
