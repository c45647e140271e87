"""
Search quality through the real path.

A test collection in BEIR's layout (SciFact, or any other) is copied into an auto-embedded table; then nv_search answers every query of the test
split, k = 10, exactly: there is no index. Prints nDCG@10 and Recall@5. all-MiniLM-L6-v2 on SciFact: 0.645 on the public leaderboard.

    bench/scifact.py DIR [--database-url URL] [--split test] [--json]

DIR holds corpus.jsonl, queries.jsonl (each may end in .gz) and qrels/SPLIT.tsv. Without a URL it uses the servers of `nv-embed up`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import psycopg
from collection import Collection, read
from machine import keep, load_average, machine

from nv_embed.cli.private import servers
from nv_embed.demo.scoring import ndcg_at, recall_at

K = 10
PAGE_ROWS = 256

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        load_average: the machine's, over the minute before; the times mean little where it is not near 0.
    """

    collection: str
    split: str
    model: str
    revision: str
    dim: int
    documents: int
    queries: int
    ndcg_at_10: float
    recall_at_5: float
    load_s: float
    rows_per_s: float
    query_median_ms: float
    query_p95_ms: float
    load_average: float
    machine: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--database-url")
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    if options.folder is None:
        print("skipped: give a folder in BEIR's layout to measure search quality on")
        return
    collection = read(options.folder, options.split)
    with psycopg.connect(options.database_url or servers().dsn(), autocommit=True) as connection, schema(connection):
        result = measure(connection, collection, options.split)
    keep(f"{result.collection}-{result.model}", as_text(result))
    print(json.dumps(asdict(result), indent=2) if options.as_json else as_text(result))


@contextmanager
def schema(connection: Connection) -> Iterator[None]:
    connection.execute("DROP SCHEMA IF EXISTS nv_embed_bench CASCADE")
    connection.execute("CREATE SCHEMA nv_embed_bench")
    connection.execute("CREATE TABLE nv_embed_bench.docs (id text PRIMARY KEY, title text NOT NULL, body text NOT NULL)")
    try:
        yield
    finally:
        connection.execute("DROP SCHEMA nv_embed_bench CASCADE")


def measure(connection: Connection, collection: Collection, split: str) -> Result:
    connection.execute("SELECT nv_embed.auto_embed('nv_embed_bench.docs', source => '{title} {body}', truncate => 'END')")
    load_before = load_average()
    load_s = load(connection, collection.documents)
    found, seconds = {}, []
    for query, text in collection.queries.items():
        begun = time.perf_counter()
        rows = connection.execute("SELECT (hit).id FROM nv_search(NULL::nv_embed_bench.docs, %s, k => %s) ORDER BY score DESC", (text, K)).fetchall()
        seconds.append(time.perf_counter() - begun)
        found[query] = [row[0] for row in rows]
    model, revision, dim = connection.execute(
        "SELECT g.model, g.revision, g.dim FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding"
        " WHERE e.relation = 'nv_embed_bench.docs'::regclass"
    ).fetchall()[0]
    return Result(
        collection=collection.name,
        split=split,
        model=model,
        revision=revision,
        dim=dim,
        documents=len(collection.documents),
        queries=len(found),
        ndcg_at_10=statistics.fmean(ndcg_at(found[query], collection.grades[query], 10) for query in found),
        recall_at_5=statistics.fmean(recall_at(found[query], collection.grades[query], 5) for query in found),
        load_s=load_s,
        rows_per_s=len(collection.documents) / load_s,
        query_median_ms=1000 * statistics.median(seconds),
        query_p95_ms=1000 * statistics.quantiles(seconds, n=20)[-1],
        load_average=load_before,
        machine=machine(),
    )


def load(connection: Connection, documents: Mapping[str, tuple[str, str]]) -> float:
    begun = time.perf_counter()
    rows = [(key, title, body) for key, (title, body) in documents.items()]
    for start in range(0, len(rows), PAGE_ROWS):
        copy(connection, rows[start : start + PAGE_ROWS])
        print(f"{min(start + PAGE_ROWS, len(rows)):,} of {len(rows):,} documents", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return time.perf_counter() - begun


def copy(connection: Connection, rows: Sequence[tuple[str, str, str]]) -> None:
    with connection.cursor().copy("COPY nv_embed_bench.docs (id, title, body) FROM STDIN") as target:
        for row in rows:
            target.write_row(row)


def as_text(result: Result) -> str:
    return "\n".join(
        [
            f"# {result.collection}, {result.split} split, {result.model}",
            "",
            "COPY into an auto-embedded table (title + space + text, truncate END), nv_search with k = 10, exact search.",
            "",
            f"- nDCG@10 **{result.ndcg_at_10:.4f}**, Recall@5 **{result.recall_at_5:.4f}** over {result.queries:,} queries",
            f"- {result.documents:,} documents copied and embedded in {result.load_s:.1f} s: {result.rows_per_s:.1f} rows/s",
            f"- a query: median {result.query_median_ms:.1f} ms, 95 % within {result.query_p95_ms:.1f} ms",
            f"- model {result.model}, revision {result.revision}, {result.dim} dimensions",
            f"- {result.machine}; load average before: {result.load_average:.1f}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
