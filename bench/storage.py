"""
What vectors of long documents cost, and what is lost with the bytes.

Three things make them smaller: one vector for a whole document instead of one for each piece of 512 tokens, the first 384 components instead of all,
and halves or single bits instead of floats. Each way to store them becomes a table in one PostgreSQL, with its primary key and, where pgvector has
one, an HNSW index; its own size functions say what each takes.

Bytes do not depend on what a vector says, so random ones are measured: what a model of 2048 or 4096 dimensions gives is as long. The documents, where
they are cut, and what is found are real: MiniLM embeds them through auto_embed, and questions are answered exactly, without an index, so that what is
lost is the layout's alone. MiniLM gives 384 dimensions and reads 512 tokens. What it finds by whole documents is therefore found by their beginnings;
the mean of the pieces' vectors, which takes the same bytes, stands for a model that reads them to the end.

    bench/storage.py BEIR_DIR… [--model minilm] [--tokens 512] [--documents 1000]
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import numpy
import psycopg
from machine import keep, load_average, machine, table
from numpy.typing import NDArray
from pgvector import Bit, HalfVector, Vector
from servers import running_cluster, running_sidecar, shared_folder

from nv_embed.evaluation.collection import Collection, read
from nv_embed.evaluation.scoring import ndcg_at, recall_at

Connection = psycopg.Connection[Any]

DIM, K = 384, 10

READS_TOKENS = 8192
"""What NVIDIA's retriever reads of a document."""

PAGE_CHARS = 200_000
"""Of the texts that one statement embeds."""

SETTINGS = {"shared_buffers": "1GB", "maintenance_work_mem": "2GB", "max_parallel_maintenance_workers": "1"}

OPERATORS = {"vector": "vector_cosine_ops", "halfvec": "halfvec_cosine_ops", "bit": "bit_hamming_ops"}
MOST_INDEXED = {"vector": 2000, "halfvec": 4000, "bit": 64000}
"""Dimensions of an index, by the type of what it holds."""


@dataclass(frozen=True)
class Layout:
    """A way to store the vectors of a corpus.

    Attributes:
        unit: what gets a vector, "pieces" or "whole".
        storage: the type of the column.
    """

    unit: str
    dim: int
    storage: str

    @property
    def name(self) -> str:
        return f"{self.unit}_{self.dim}_{self.storage}"

    @property
    def indexed(self) -> str:
        """The type that is indexed: a vector that is too wide for an index is indexed as halves, if these are not."""
        wide = self.storage == "vector" and self.dim > MOST_INDEXED["vector"]
        kind = "halfvec" if wide else self.storage
        return kind if self.dim <= MOST_INDEXED[kind] else ""

    def said(self) -> str:
        return f"{self.unit}, {self.dim}, {'bits' if self.storage == 'bit' else self.storage}"


WIDEST, BASE, TARGET = Layout("pieces", 4096, "vector"), Layout("pieces", 2048, "vector"), Layout("whole", 384, "vector")
STEPS = (BASE, Layout("whole", 2048, "vector"), TARGET, Layout("whole", 384, "halfvec"), Layout("whole", 384, "bit"))
"""From the largest to the smallest, one thing at a time."""

LAYOUTS = (
    WIDEST,
    BASE,
    Layout("pieces", 2048, "halfvec"),
    Layout("pieces", 384, "vector"),
    Layout("pieces", 384, "halfvec"),
    Layout("pieces", 384, "bit"),
    *STEPS[1:],
)


@dataclass(frozen=True)
class Piece:
    """A row's key, where its text begins and ends, and nothing of the text."""

    id: str
    seq: int
    start_char: int
    end_char: int


@dataclass(frozen=True)
class Size:
    """Bytes, as Postgres measures them.

    Attributes:
        rows: how many vectors there are.
        index: 0 where there is no index on the vectors.
    """

    rows: int
    table: int
    toast: int
    key: int
    index: int

    @property
    def total(self) -> int:
        return self.table + self.toast + self.key + self.index


@dataclass(frozen=True)
class Quality:
    recall_at_5: float
    ndcg_at_10: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEIR_DIR")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--tokens", type=int, default=512, help="of a piece; the sidecar's limit too")
    parser.add_argument("--documents", type=int, default=1000, help="bytes are measured on so many at least: a small corpus is stored several times")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    if not options.folders:
        print("skipped: give folders in BEIR's layout whose documents are to be stored")
        return
    lines = ["# storage", ""]
    before = load_average()
    with (
        shared_folder() as folder,
        running_cluster(folder, **SETTINGS) as cluster,
        running_sidecar(folder, "--model", options.model, "--max-tokens", str(options.tokens)) as sidecar,
    ):
        for number, source in enumerate(options.folders):
            collection = read(source, options.split)
            database = f"bench_{number}"
            cluster.create_database(database)
            with cluster.connect(database) as db:
                db.execute("CREATE EXTENSION nv_embed CASCADE")
                db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
                lines += report(db, collection, options.tokens, options.documents)
    lines += [
        f"- Found exactly, without an index, by {options.model}, {DIM} dimensions; it reads {options.tokens} tokens: a whole document's beginning.",
        f"- {machine()}; load average before: {before:.1f}",
        "",
    ]
    result = "\n".join(lines)
    keep("storage", result)
    print(result)


def report(db: Connection, collection: Collection, tokens: int, least: int) -> list[str]:
    embed(db, collection, tokens)
    lengths = [length for (length,) in db.execute("SELECT nv_count_tokens(body) FROM docs").fetchall()]
    copies = -(-least // len(collection.documents))
    pieces = [Piece(*row) for row in db.execute("SELECT id, seq, start_char, end_char FROM docs_piece_chunk ORDER BY id, seq").fetchall()]
    units = {"pieces": pieces, "whole": [Piece(id, 0, 0, 0) for id in collection.documents]}
    sizes = {layout: measure(db, layout, units[layout.unit], copies) for layout in LAYOUTS}
    qualities = search(db, collection)
    count = copies * len(collection.documents)
    return [
        f"## {collection.name}",
        "",
        f"{len(collection.documents):,} documents, {statistics.median(lengths):,.0f} tokens in the median;"
        f" {sum(length > READS_TOKENS for length in lengths):,} are longer than {READS_TOKENS:,}. {len(collection.queries):,} questions."
        f" Bytes are those of a document, among {count:,}{f', which is {copies} times the corpus' if copies > 1 else ''}.",
        "",
        rows(sizes, count, qualities),
        "",
        *factors(sizes),
        *(
            f"- Whole documents as the {name}: Recall@5 {quality.recall_at_5:.3f}, nDCG@10 {quality.ndcg_at_10:.3f}"
            for name, quality in qualities.items()
            if name.startswith("mean")
        ),
        "",
    ]


def embed(db: Connection, collection: Collection, tokens: int) -> None:
    """The corpus, each document whole, as far as the model reads, and in pieces. The other targets are made of these two."""
    db.execute("CREATE TABLE docs (id text PRIMARY KEY, body text NOT NULL)")
    declare(db, "piece", "vector", "sync", tokens)
    declare(db, "whole", "vector", "sync")
    done = 0
    for page in pages(collection):
        with db.cursor().copy("COPY docs (id, body) FROM STDIN") as target:
            for row in page:
                target.write_row(row)
        done += len(page)
        print(f"{collection.name}: {done:,} of {len(collection.documents):,} documents", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    declare(db, "piece_halfvec", "halfvec", "off", tokens)
    declare(db, "whole_halfvec", "halfvec", "off")
    declare(db, "mean", "vector", "off")
    declare(db, "mean_halfvec", "halfvec", "off")
    db.execute("INSERT INTO docs_piece_halfvec_chunk SELECT id, seq, start_char, end_char, piece FROM docs_piece_chunk")
    db.execute(
        "UPDATE docs SET whole_halfvec = whole, mean = m.mean, mean_halfvec = m.mean"
        " FROM (SELECT id, l2_normalize(avg(piece)) AS mean FROM docs_piece_chunk GROUP BY id) AS m WHERE m.id = docs.id"
    )
    db.execute("CREATE TABLE questions (id text PRIMARY KEY, v vector NOT NULL)")
    embedded = "SELECT id, v FROM unnest(%s::text[], nv_embed(%s::text[], dim => %s, input_type => 'query', truncate => 'END')) AS t (id, v)"
    db.execute(f"INSERT INTO questions {embedded}", (list(collection.queries), list(collection.queries.values()), DIM))


def declare(db: Connection, target: str, storage: str, mode: str, tokens: int | None = None) -> None:
    db.execute(
        "SELECT nv_embed.auto_embed('docs', '{body}', %s, dim => %s, storage => %s, mode => %s, truncate => %s, chunk_tokens => %s)",
        (target, DIM, storage, mode, "END" if tokens is None else "NONE", tokens),
    )


def pages(collection: Collection) -> Iterator[list[tuple[str, str]]]:
    page: list[tuple[str, str]] = []
    for row in zip(collection.documents, collection.passages(), strict=True):
        page.append(row)
        if sum(len(text) for _, text in page) >= PAGE_CHARS:
            yield page
            page = []
    if page:
        yield page


def measure(db: Connection, layout: Layout, units: Sequence[Piece], copies: int) -> Size:
    """Store it, ask Postgres, and drop it."""
    print(f"storing {layout.said()}", file=sys.stderr, flush=True)
    has_pieces = layout.unit == "pieces"
    places = "seq int NOT NULL, start_char int NOT NULL, end_char int NOT NULL, " if has_pieces else ""
    kind = f"{layout.storage}({layout.dim})"
    db.execute(f"CREATE TABLE {layout.name} (id text NOT NULL, {places}embedding {kind} NOT NULL, PRIMARY KEY (id{', seq' if has_pieces else ''}))")
    # Each copy has vectors of its own, because the index holds equal ones once.
    random = numpy.random.default_rng(1)
    with db.cursor().copy(f"COPY {layout.name} FROM STDIN WITH BINARY") as target:
        target.set_types(["text", *(["int4"] * 3 if has_pieces else []), "bytea"])
        for copy in range(copies):
            for each in units:
                place = (each.seq, each.start_char, each.end_char) if has_pieces else ()
                target.write_row((f"{each.id}.{copy}" if copy else each.id, *place, wire(random.standard_normal(layout.dim), layout.storage)))
    if layout.indexed:
        expression = "embedding" if layout.indexed == layout.storage else f"(embedding::{layout.indexed}({layout.dim}))"
        db.execute(f"CREATE INDEX {layout.name}_hnsw ON {layout.name} USING hnsw ({expression} {OPERATORS[layout.indexed]})")
    size = sizes_of(db, layout.name)
    db.execute(f"DROP TABLE {layout.name}")
    return size


def wire(vector: "NDArray[numpy.float64]", storage: str) -> bytes:
    if storage == "bit":
        return Bit(vector > 0).to_binary()
    return (Vector if storage == "vector" else HalfVector)(vector / numpy.linalg.norm(vector)).to_binary()


def sizes_of(db: Connection, name: str) -> Size:
    """The main fork with its maps, TOAST with its index, primary key, index on the vectors."""
    row = db.execute(
        f"""
        WITH measured AS (
            SELECT pg_table_size(c.oid) AS heap, coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) AS toast,
                (SELECT sum(pg_relation_size(indexrelid))::bigint FROM pg_index WHERE indrelid = c.oid AND indisprimary) AS key,
                (SELECT coalesce(sum(pg_relation_size(indexrelid)), 0)::bigint FROM pg_index WHERE indrelid = c.oid AND NOT indisprimary) AS index
            FROM pg_class AS c
            WHERE c.oid = '{name}'::regclass
        )
        SELECT (SELECT count(*) FROM {name}), heap - toast, toast, key, index, pg_total_relation_size('{name}') FROM measured
        """
    ).fetchone()
    assert row is not None
    *parts, total = row
    size = Size(*parts)
    assert size.total == total, (size, total)
    return size


def by_nv_search(target: str) -> str:
    """Without an index it is exact."""
    return f"SELECT (hit).id FROM nv_search(NULL::docs, %(question)s::vector, k => {K}, target => '{target}') ORDER BY score DESC"


def by_bits(relation: str, vector: str) -> str:
    """Exact too: the nearest by Hamming distance, a document by the nearest of its pieces."""
    signs, asked = (f"binary_quantize({each})::bit({DIM})" for each in (vector, "%(question)s::vector"))
    return f"SELECT id FROM {relation} GROUP BY id ORDER BY min({signs} <~> {asked}), id LIMIT {K}"


SEARCHES: Mapping[str, str] = {
    f"pieces, {DIM}, vector": by_nv_search("piece"),
    f"pieces, {DIM}, halfvec": by_nv_search("piece_halfvec"),
    f"pieces, {DIM}, bits": by_bits("docs_piece_chunk", "piece"),
    f"whole, {DIM}, vector": by_nv_search("whole"),
    f"whole, {DIM}, halfvec": by_nv_search("whole_halfvec"),
    f"whole, {DIM}, bits": by_bits("docs", "whole"),
    f"mean of pieces, {DIM}, vector": by_nv_search("mean"),
    f"mean of pieces, {DIM}, halfvec": by_nv_search("mean_halfvec"),
    f"mean of pieces, {DIM}, bits": by_bits("docs", "mean"),
}


def search(db: Connection, collection: Collection) -> dict[str, Quality]:
    questions = db.execute("SELECT id, v::text FROM questions").fetchall()
    qualities = {}
    for name, statement in SEARCHES.items():
        print(f"searching {name}", file=sys.stderr, flush=True)
        found = {query: [id for (id,) in db.execute(statement, {"question": vector}).fetchall()] for query, vector in questions}
        qualities[name] = Quality(
            statistics.fmean(recall_at(ids, collection.grades[query], 5) for query, ids in found.items()),
            statistics.fmean(ndcg_at(ids, collection.grades[query], K) for query, ids in found.items()),
        )
    return qualities


def rows(sizes: Mapping[Layout, Size], documents: int, qualities: Mapping[str, Quality]) -> str:
    header = (
        "what has a vector, dimensions, type",
        "vectors",
        "table",
        "TOAST",
        "primary key",
        "HNSW",
        "bytes",
        "times smaller",
        "without HNSW",
        "Recall@5",
        "nDCG@10",
    )
    lines = []
    for layout, size in sizes.items():
        quality = qualities.get(layout.said())
        parts = (f"{part / documents:,.0f}" for part in (size.table, size.toast, size.key))
        lines.append(
            (
                layout.said(),
                f"{size.rows / documents:.1f}",
                *parts,
                f"{size.index / documents:,.0f}" if layout.indexed else "none",
                f"{size.total / documents:,.0f}",
                f"{sizes[BASE].total / size.total:.1f}" if layout.indexed else "",
                f"{(sizes[BASE].total - sizes[BASE].index) / (size.total - size.index):.1f}",
                *((f"{quality.recall_at_5:.3f}", f"{quality.ndcg_at_10:.3f}") if quality else ("", "")),
            )
        )
    return table(header, lines)


def factors(sizes: Mapping[Layout, Size]) -> list[str]:
    """What each step is worth, indexes included."""
    shares = {(before, after): sizes[before].total / sizes[after].total for before, after in pairwise(STEPS)}
    lines = [f"- {before.said()} → {after.said()}: × {share:.1f}" for (before, after), share in shares.items()]
    base, widest, target = (sizes[layout] for layout in (BASE, WIDEST, TARGET))
    return [
        *lines,
        f"- **{BASE.said()} → {TARGET.said()}: × {base.total / target.total:.1f}** (wanted: 35)",
        f"- {WIDEST.said()} → {TARGET.said()}, without HNSW: × {widest.total / (target.total - target.index):.1f}",
    ]


if __name__ == "__main__":
    main()
