"""
What a search costs, and what it finds.

A table of synthetic vectors of 2048 dimensions (`synthetic.py` says how they lie), and four indexes on it: the whole vectors, their first 384 and
768 components, and their signs; and one with the same rows that keeps the vectors in the row instead of in TOAST, with an index of 384. Each index is
read at several settings, all of them in turns on the same queries, and of each the cheapest is taken that finds as much of what exact search finds as
is asked for. Then what nv_search() adds to the statement that it runs. All of it twice: with shared_buffers that hold everything, and with some that
hold the index of 384 components but not the one of whole vectors, whose pages then come from the system's cache.

    bench/search.py [--rows 100000] [--queries 200] [--recalls 0.999 0.998 0.99] [--ef-construction 400] [--m 16] [--without-full] [--long]
                    [--buffers 8GB 256MB] [--plot FILE.png]

What bounds a search is the number of pages that it touches. A half-precision vector of 2048 components takes a page of the index, 384 of them a
tenth, signs a thirtieth. A stored vector that re-scores is in the page of its row, or in three pieces of TOAST, which are found by an index. The
result says how many pages each plan touched.
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import psycopg
from machine import keep, load_average, machine, percentile, table
from pgvector import HalfVector, Vector
from pgvector.psycopg import register_vector
from servers import running_cluster, shared_folder
from synthetic import DECAY, Collection, Floats, nearest, recall

from nv_embed import library
from nv_embed.cluster import Cluster

Connection = psycopg.Connection[Any]

DIM, K = 2048, 10
MODEL = {"name": "synthetic", "revision": "1", "native_dim": DIM, "trained_dims": [DIM, 768, 384], "declared_dims": []}
ASKED = f"%(query)b::halfvec({DIM})"
IN_TOAST, IN_ROW = "docs", "in_row"
"""Tables."""
RECALLS, LONG_RECALLS = (0.999, 0.998, 0.99), (0.99, 0.98, 0.95)
"""Recalls to be reached. An index of whole vectors ends short of 1 by itself, whatever its m: pgvector keeps vectors at unit length, rounded once
more, so the last of ten may change places with the next. Ranked by the stored vectors its rows reach 1."""
EXACT_QUERIES = 20
LONG_ROWS = 1_000_000
NV_SEARCH = f"SELECT (hit).id, (hit).body, score FROM nv_search(NULL::docs, %(whole)b::vector, k => {K}, dim => 384)"
BY_HAND = f"""
    SELECT id, body, 1 - distance
    FROM (
        SELECT id, body, embedding <=> {ASKED} AS distance
        FROM (
            SELECT id, body, embedding FROM docs WHERE embedding IS NOT NULL
            ORDER BY subvector(embedding, 1, 384)::halfvec(384) <=> subvector({ASKED}, 1, 384)::halfvec(384)
            LIMIT {4 * K}
        ) AS near
    ) AS ranked
    ORDER BY distance, id
    LIMIT {K}
"""
FILTERED = f"SELECT (hit).id FROM nv_search(NULL::docs, %(whole)b::vector, k => {K}, dim => 384, filter => %(filter)s)"
FILTERS = {"and an index serves": "lot = 7", "and no index serves": "unindexed = 7"}
"""Of a thousand lots one."""
BUILDERS = str(min((os.cpu_count() or 2) - 1, 15))
BUFFERS = ("8GB", "256MB")
SETTINGS = {
    "maintenance_work_mem": "4GB",
    "max_parallel_maintenance_workers": BUILDERS,
    "max_parallel_workers": BUILDERS,
    "max_worker_processes": "20",
    # The rows in TOAST count for nothing in what the planner takes for a small table: one process would build its indexes, and search it exactly.
    "min_parallel_table_scan_size": "0",
    "max_parallel_workers_per_gather": "0",
}
M, EF_CONSTRUCTION = 16, 400
"""Of the graphs; pgvector's own are 16 and 64."""
READING = re.compile(r"(Bitmap Heap|Index|Seq) Scan (using \w+ )?on \w+")
"""How a plan says that it reads a table."""
WIDTHS = (10, 20, 40, 80, 120, 200, 300, 400, 600, 800, 1000)
"""Of hnsw.ef_search."""


@dataclass(frozen=True)
class Index:
    """What is indexed.

    Attributes:
        dim: how many first components.
        table: which one it is of.
        candidates: how many rows it may propose; none where what it gives is the answer.
    """

    name: str
    storage: str
    dim: int
    candidates: Sequence[int] = (K,)
    table: str = IN_TOAST

    @property
    def place(self) -> tuple[str, int, str]:
        return self.table, self.dim, self.storage

    def expression(self, vector: str) -> str:
        prefix = vector if self.dim == DIM else f"subvector({vector}, 1, {self.dim})::halfvec({self.dim})"
        return prefix if self.storage == "halfvec" else f"binary_quantize({vector})::bit({self.dim})"

    def statement(self, candidates: int) -> str:
        order = f"{self.expression('embedding')} {'<~>' if self.storage == 'bit' else '<=>'} {self.expression(ASKED)}"
        if candidates == K and self.dim == DIM and self.storage == "halfvec":
            return f"SELECT id FROM {self.table} ORDER BY {order} LIMIT {K}"
        near = f"SELECT id, embedding FROM {self.table} ORDER BY {order} LIMIT {candidates}"
        # A sum, or the planner takes what the index of whole vectors gives for sorted by the stored ones.
        return f"SELECT id FROM ({near}) AS near ORDER BY 0 + (embedding <=> {ASKED}) LIMIT {K}"


FULL = Index("whole", "halfvec", DIM)
FULL_RANKED = replace(FULL, name="whole + re-score", candidates=(2 * K, 4 * K))
NARROW = Index("384 + re-score", "halfvec", 384, (20, 40, 80, 120, 160, 240))
NEAR = replace(NARROW, name="384 + re-score in the row", candidates=(*NARROW.candidates, 400), table=IN_ROW)
WIDE = Index("768 + re-score", "halfvec", 768, (20, 40, 80))
BITS = Index("bits + re-score", "bit", DIM, (160, 400, 1000))


@dataclass
class Plan:
    """An index at one setting, and what was measured.

    Attributes:
        found: recall of each query.
        seconds: of each query in each round.
    """

    index: Index
    width: int
    candidates: int
    found: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def statement(self) -> str:
        return self.index.statement(self.candidates)

    def recall(self) -> float:
        return statistics.fmean(self.found)

    def p95(self) -> float:
        return percentile(self.seconds, 95)

    def point(self) -> "Point":
        return Point(self.index.name, self.width, self.candidates, self.recall(), self.p95())


@dataclass(frozen=True)
class Point:
    """A setting and what came of it, as it is drawn."""

    index: str
    width: int
    candidates: int
    recall: float
    p95_s: float


@dataclass(frozen=True)
class Built:
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Found:
    """What a run measured.

    Attributes:
        exact: seconds of each exact search, by table.
        plans: every setting that was tried.
        chosen: by the recall asked for, the cheapest setting of each index.
        pages: that each of these plans touched.
        nv_search: median seconds of nv_search, and of the same statement by hand.
        filtered: of each filter, seconds of each search and how the rows are read.
    """

    built: dict[str, Built]
    exact: dict[str, list[float]]
    plans: list[Plan]
    chosen: dict[float, dict[str, Plan]]
    pages: dict[float, dict[str, int]]
    nv_search: tuple[float, float]
    filtered: dict[str, tuple[list[float], str]]


def given() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--recalls", type=float, nargs="+", help="to be reached")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--m", type=int, default=M)
    parser.add_argument("--ef-construction", type=int, default=EF_CONSTRUCTION)
    parser.add_argument("--buffers", nargs="+", default=BUFFERS, metavar="SIZE", help="shared_buffers, one after the other")
    parser.add_argument("--without-full", action="store_true", help="leave out the index of whole vectors, which takes hours to build for millions")
    parser.add_argument("--long", action="store_true", help="the same as --rows 1000000 --without-full")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw what each index finds in which time")
    parser.add_argument("--points", type=Path, metavar="FILE.json", help="keep what is drawn")
    options = parser.parse_args()
    if options.long:
        options.rows, options.without_full = LONG_ROWS, True
    options.recalls = options.recalls or (LONG_RECALLS if options.long else RECALLS)
    return options


def main() -> None:
    options = given()
    before = load_average()
    collection = Collection(options.rows, DIM)
    queries = collection.queries(options.queries)
    wanted, cosines = nearest(collection, queries, K)
    indexes = [NARROW, NEAR, WIDE, BITS] if options.without_full else [FULL, FULL_RANKED, NARROW, NEAR, WIDE, BITS]
    with a_cluster() as cluster:
        with opened(cluster, options.buffers[0]) as db:
            loaded_s = load(db, collection)
            copied_s = copy_into_rows(db)
            sizes = {name: table_bytes(db, name) for name in (IN_TOAST, IN_ROW)}
            built = build_all(db, indexes, options.m, options.ef_construction)
        runs = {}
        for buffers in options.buffers:
            with opened(cluster, buffers) as db:
                runs[buffers] = run(db, indexes, built, queries, wanted, options.recalls, options.rounds)
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    text = "\n".join(
        [
            f"# search, {options.rows:,} vectors of {DIM} dimensions",
            "",
            f"The nearest is at a cosine of {statistics.median(cosines[:, 0]):.2f}, the tenth at {statistics.median(cosines[:, -1]):.2f} (medians)."
            f" Exact search by a prefix alone finds {prefix_recall(collection, queries, wanted, 384):.3f} of them by 384 components, and"
            f" {prefix_recall(collection, queries, wanted, 768):.3f} by 768."
            f" Loaded by COPY in {loaded_s:.0f} s, and copied into rows in {copied_s:.0f} s:"
            f" {sizes[IN_TOAST] / 1e6:.0f} MB with the vectors in TOAST, {sizes[IN_ROW] / 1e6:.0f} MB with them in the row.",
            "",
            *(line for buffers, found in runs.items() for line in section(buffers, found)),
            f"- graphs of m {options.m} and ef_construction {options.ef_construction}; the vectors' spectrum decays as (i + 1) ** -{DECAY}",
            f"- settings of the server: {settings}",
            f"- {machine()}; load average before: {before:.1f}",
            "",
        ]
    )
    print(text)
    keep(f"search-{options.rows}", text)
    points = {buffers: [plan.point() for plan in found.plans] for buffers, found in runs.items()}
    if options.points:
        options.points.write_text(json.dumps({buffers: [asdict(point) for point in drawn] for buffers, drawn in points.items()}))
    if options.plot:
        plot(points, options.plot, options.rows)


def section(buffers: str, found: Found) -> list[str]:
    tables = (line for least in found.chosen for line in (f"### At a recall of {least}", "", results(found, least), ""))
    return [f"## shared_buffers {buffers}", "", *tables, *ratios(found), ""]


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """With nv_embed as a library, which needs no sidecar."""
    with shared_folder() as folder, running_cluster(folder, **SETTINGS) as cluster:
        cluster.create_database("bench")
        with psycopg.connect(cluster.dsn("bench")) as connection:
            library.install(connection, None, None, ())
        with cluster.connect("bench") as db:
            db.execute("CREATE EXTENSION pg_prewarm")
            db.execute("SELECT nv_embed.record_models(%s)", [json.dumps([MODEL])])
        yield cluster


@contextmanager
def opened(cluster: Cluster, buffers: str) -> Iterator[Connection]:
    """A connection to the cluster, started anew with shared_buffers of this size."""
    cluster.stop()
    resized = replace(cluster, settings={**cluster.settings, "shared_buffers": buffers})
    resized.start()
    with resized.connect("bench") as db:
        register_vector(db)
        db.prepared_max = None
        yield db


def run(
    db: Connection, indexes: Sequence[Index], built: dict[str, Built], queries: Floats, wanted: Any, recalls: Sequence[float], rounds: int
) -> Found:
    for name in (IN_ROW, IN_TOAST):
        db.execute("SELECT pg_prewarm(oid), pg_prewarm(reltoastrelid) FROM pg_class WHERE oid = %s::regclass", [name])
        db.execute("SELECT pg_prewarm(index) FROM nv_embed.vector_indexes(%s)", [name])
    say("searching exactly")
    exact = {name: search_exactly(db, name, queries[:EXACT_QUERIES], wanted) for name in (IN_TOAST, IN_ROW)}
    plans = sweep(db, indexes, queries, wanted)
    say("the cheapest settings again")
    chosen = choose_each(plans, indexes, recalls)
    measure(db, distinct(chosen), queries, wanted, rounds)
    say("nv_search beside its statement")
    pages = {least: {plan.index.name: pages_touched(db, plan, queries[0]) for plan in chosen[least].values()} for least in recalls}
    return Found(built, exact, plans, chosen, pages, nv_search_adds(db, queries, rounds), search_filtered(db, queries[:EXACT_QUERIES]))


def prefix_recall(collection: Collection, queries: Floats, wanted: Any, dim: int) -> float:
    found, _ = nearest(collection, queries, K, dim)
    return statistics.fmean(recall(list(keys), rows) for keys, rows in zip(found, wanted, strict=True))


def load(db: Connection, collection: Collection) -> float:
    """Seconds. A new declaration of mode off embeds nothing."""
    db.execute("""
        CREATE TABLE docs (
            id int PRIMARY KEY, body text,
            lot int GENERATED ALWAYS AS (id % 1000) STORED, unindexed int GENERATED ALWAYS AS (id % 1000) STORED
        )
    """)
    db.execute("CREATE INDEX ON docs (lot)")
    db.execute(f"SELECT nv_embed.auto_embed('docs', '{{body}}', dim => {DIM}, mode => 'off')")
    begun = time.perf_counter()
    key = 0
    with db.cursor().copy("COPY docs (id, body, embedding) FROM STDIN WITH BINARY") as rows:
        rows.set_types(["int4", "text", "bytea"])
        for block in collection.documents():
            for vector in block:
                rows.write_row((key, f"text {key}", HalfVector(vector).to_binary()))
                key += 1
            print(f"{key:,} of {collection.rows:,} vectors", end="\r", file=sys.stderr, flush=True)
    db.execute("VACUUM ANALYZE docs")
    return time.perf_counter() - begun


def copy_into_rows(db: Connection) -> float:
    """The table again, with its vectors in the row. Returns seconds."""
    say("copying the vectors into rows")
    db.execute(f"CREATE TABLE {IN_ROW} (id int PRIMARY KEY, body text)")
    db.execute(f"SELECT nv_embed.auto_embed('{IN_ROW}', '{{body}}', dim => {DIM}, mode => 'off')")
    db.execute(f"ALTER TABLE {IN_ROW} ALTER COLUMN embedding SET STORAGE MAIN")
    begun = time.perf_counter()
    db.execute(f"INSERT INTO {IN_ROW} (id, body, embedding) SELECT id, body, embedding FROM {IN_TOAST}")
    db.execute(f"VACUUM ANALYZE {IN_ROW}")
    return time.perf_counter() - begun


def table_bytes(db: Connection, table: str) -> int:
    """With its TOAST, without indexes."""
    row = db.execute("SELECT pg_table_size(%s::regclass)", [table]).fetchone()
    assert row is not None
    return int(row[0])


def build_all(db: Connection, indexes: Sequence[Index], m: int, ef_construction: int) -> dict[str, Built]:
    """By the name of each plan; some share an index."""
    made: dict[tuple[str, int, str], Built] = {}
    for index in indexes:
        if index.place not in made:
            made[index.place] = build(db, index, m, ef_construction)
    return {index.name: made[index.place] for index in indexes}


def build(db: Connection, index: Index, m: int = M, ef_construction: int = EF_CONSTRUCTION) -> Built:
    say(f"building the index: {index.name}")
    row = db.execute(
        "SELECT nv_embed.create_index_sql(%s, dim => %s, storage => %s, concurrently => false, m => %s, ef_construction => %s)",
        [index.table, index.dim, index.storage, m, ef_construction],
    ).fetchone()
    assert row is not None
    begun = time.perf_counter()
    db.execute(row[0])
    seconds = time.perf_counter() - begun
    size = db.execute(
        "SELECT bytes FROM nv_embed.vector_indexes(%s) WHERE dim = %s AND storage = %s", [index.table, index.dim, index.storage]
    ).fetchone()
    assert size is not None
    return Built(size[0], seconds)


def search_exactly(db: Connection, table: str, queries: Floats, wanted: Any) -> list[float]:
    """Seconds of each."""
    statement = f"SELECT id FROM {table} ORDER BY 0 + (embedding <=> {ASKED}) LIMIT {K}"
    seconds = []
    for query, rows in zip(queries, wanted, strict=False):
        found, took = timed(db, statement, query)
        assert recall(found, rows) >= 1 - 1 / K  # rows as near as the last one to single precision
        seconds.append(took)
    return seconds


def sweep(db: Connection, indexes: Sequence[Index], queries: Floats, wanted: Any) -> list[Plan]:
    """Every index at every setting: a look at each, to choose from."""
    settings = [
        (index, width, candidates)
        for index in indexes
        for candidates in index.candidates
        for width in WIDTHS
        if candidates <= width <= max(8 * candidates, 1000 if index.dim == DIM and index.storage != "bit" else 200)
    ]
    plans = [Plan(index, width, candidates) for index, width, candidates in settings]
    db.execute("SET plan_cache_mode = force_generic_plan; SET enable_sort = off; SET jit = off; SET hnsw.iterative_scan = off")
    for plan in plans:
        (explained,) = zip(*db.execute(f"EXPLAIN {literally(plan.statement, queries[0])}"), strict=True)
        assert f"{plan.index.table}_embedding_{plan.index.dim}_{plan.index.storage}_hnsw" in "\n".join(explained), explained
    say(f"{len(plans)} settings")
    measure(db, plans, queries, wanted, 1)
    return plans


def say(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


def measure(db: Connection, plans: Sequence[Plan], queries: Floats, wanted: Any, rounds: int) -> None:
    """Time all plans in turns, each with another query: right after another plan a query would find pages, of an index that both read too, in the
    buffers and in the processor's caches."""
    for plan in plans:
        plan.found.clear()
        plan.seconds.clear()
    for number in range(rounds * len(queries)):
        for turn, plan in enumerate(plans):
            place = (number + turn * len(queries) // len(plans)) % len(queries)
            db.execute(f"SET hnsw.ef_search = {plan.width}")
            found, seconds = timed(db, plan.statement, queries[place])
            plan.found.append(recall(found, wanted[place]))
            plan.seconds.append(seconds)


def timed(db: Connection, statement: str, query: Floats) -> tuple[list[int], float]:
    """What is found, and seconds. The statement is prepared, and the query sent in binary."""
    asked = {"query": HalfVector(query)}
    begun = time.perf_counter()
    rows = db.execute(statement, asked, prepare=True).fetchall()
    return [key for (key,) in rows], time.perf_counter() - begun


def literally(statement: str, query: Floats) -> str:
    return statement.replace("%(query)b", f"'{HalfVector(query).to_text()}'")


def choose(plans: Sequence[Plan], indexes: Sequence[Index], least: float) -> dict[str, Plan]:
    """Of each index the setting with the lowest 95th percentile among those that find enough."""
    chosen = {}
    for index in indexes:
        enough = [plan for plan in plans if plan.index is index and plan.recall() >= least]
        if enough:
            best = min(enough, key=Plan.p95)
            chosen[index.name] = Plan(index, best.width, best.candidates)
    return chosen


def choose_each(plans: Sequence[Plan], indexes: Sequence[Index], recalls: Sequence[float]) -> dict[float, dict[str, Plan]]:
    """The choice for each recall. One that is the cheapest for two of them is the same plan in both."""
    one: dict[tuple[str, int, int], Plan] = {}
    return {
        least: {name: one.setdefault((name, plan.width, plan.candidates), plan) for name, plan in choose(plans, indexes, least).items()}
        for least in recalls
    }


def distinct(chosen: Mapping[float, Mapping[str, Plan]]) -> list[Plan]:
    return list({id(plan): plan for selection in chosen.values() for plan in selection.values()}.values())


def pages_touched(db: Connection, plan: Plan, query: Floats) -> int:
    db.execute(f"SET hnsw.ef_search = {plan.width}")
    row = db.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {literally(plan.statement, query)}").fetchone()
    assert row is not None
    explained = row[0][0]["Plan"]
    return int(explained["Shared Hit Blocks"] + explained["Shared Read Blocks"])


def nv_search_adds(db: Connection, queries: Floats, rounds: int) -> tuple[float, float]:
    """Median seconds of nv_search and of the statement by hand, which gives the same rows, whole; neither is prepared.

    Both get the query in binary: reading the text of a vector takes about as long as what is measured, and the statement has it twice. They take
    turns at being the first, which has to bring the graph into the processor's caches for both.
    """
    db.execute("RESET plan_cache_mode; RESET enable_sort; SET hnsw.ef_search = 40")
    statements = {"nv_search": NV_SEARCH, "by hand": BY_HAND}
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    answers: dict[str, list[Any]] = {name: [] for name in statements}
    for round in range(rounds):
        for number, query in enumerate(queries):
            for name, statement in sorted(statements.items(), reverse=bool((number + round) % 2)):
                asked = {"whole": Vector(query), "query": HalfVector(query)}
                begun = time.perf_counter()
                rows = db.execute(statement, asked, prepare=False).fetchall()
                seconds[name].append(time.perf_counter() - begun)
                answers[name].append([key for key, *_ in rows])
    assert answers["nv_search"] == answers["by hand"]
    return statistics.median(seconds["nv_search"]), statistics.median(seconds["by hand"])


def search_filtered(db: Connection, queries: Floats) -> dict[str, tuple[list[float], str]]:
    """By a filter that keeps 0.1 % of the rows. The nearest k of those are found, whichever way."""
    found = {}
    for name, condition in FILTERS.items():
        (rows_kept,) = db.execute(f"SELECT count(*) FROM docs WHERE {condition}").fetchone() or (0,)
        seconds = []
        for query in queries:
            asked = {"whole": Vector(query), "query": HalfVector(query), "filter": condition}
            begun = time.perf_counter()
            rows = db.execute(FILTERED, asked).fetchall()
            seconds.append(time.perf_counter() - begun)
            nearest = db.execute(f"SELECT id FROM docs WHERE {condition} ORDER BY 0 + (embedding <=> {ASKED}) LIMIT {K}", asked).fetchall()
            assert len(rows) == len(nearest) == min(K, rows_kept)
            assert recall([key for (key,) in rows], [key for (key,) in nearest]) >= 1 - 1 / K
        explained = db.execute(
            "SELECT nv_embed.explain_search(NULL::docs, %s::vector, k => %s, dim => 384, filter => %s)", [Vector(queries[0]), K, condition]
        ).fetchall()
        found[name] = (seconds, next(match[0] for (line,) in explained if (match := READING.search(line))))
    return found


def results(found: Found, least: float) -> str:
    header = ("plan", "recall@10", "p50, ms", "p95, ms", "hnsw.ef_search", "candidates", "pages touched", "index, MB", "built in, s")
    rows = []
    for name, built in found.built.items():
        plan = found.chosen[least].get(name)
        most = max(plan.recall() for plan in found.plans if plan.index.name == name)
        measured = [f"at most {most:.4f}", *[""] * 5] if plan is None else as_cells(plan, found.pages[least][name])
        rows.append((name, *measured, f"{built.bytes / 1e6:.0f}", f"{built.seconds:.0f}"))
    for name, of in (("exact, no index", IN_TOAST), ("exact in the row, no index", IN_ROW)):
        seconds = found.exact[of]
        rows.append((name, "1", f"{1000 * statistics.median(seconds):.0f}", f"{1000 * percentile(seconds, 95):.0f}", "", "", "", "0", "0"))
    return table(header, rows)


def as_cells(plan: Plan, pages: int) -> list[str]:
    median = f"{1000 * statistics.median(plan.seconds):.2f}"
    return [f"{plan.recall():.4f}", median, f"{1000 * plan.p95():.2f}", str(plan.width), str(plan.candidates), str(pages)]


def ratios(found: Found) -> list[str]:
    built, lines = found.built, []
    if FULL.name in built:
        lines.append(f"- bytes of the index, whole over 384: **× {built[FULL.name].bytes / built[NARROW.name].bytes:.1f}** (wanted: 5)")
    for least, chosen in found.chosen.items():
        for whole, index in product((FULL, FULL_RANKED), (NARROW, NEAR)):
            if whole.name in chosen and index.name in chosen:
                ratio = chosen[whole.name].p95() / chosen[index.name].p95()
                lines.append(f"- p95 at a recall of {least}, {whole.name} over {index.name}: **× {ratio:.2f}** (wanted: 2)")
    for least, chosen in found.chosen.items():
        if NARROW.name in chosen:
            ratio = statistics.median(found.exact[IN_TOAST]) / statistics.median(chosen[NARROW.name].seconds)
            lines.append(f"- exact over 384 + re-score at a recall of {least}, medians: × {ratio:.0f}")
    for name, (seconds, reading) in found.filtered.items():
        median = f"{1000 * statistics.median(seconds):.1f} ms"
        lines.append(f"- nv_search() with a filter that keeps 0.1 % of the rows, {name}: all of at most {K}, {median}, {reading}")
    whole, by_hand = (1000 * seconds for seconds in found.nv_search)
    return [
        *lines,
        f"- nv_search() adds **{whole - by_hand:.2f} ms** to the statement by hand, {whole:.2f} against {by_hand:.2f} ms, medians (wanted: 1 ms)",
    ]


def plot(points: Mapping[str, Sequence[Point]], file: Path, rows: int) -> None:
    """Recall against the 95th percentile, for each shared_buffers; of each index the settings that none other beats in both."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(points), figsize=(1 + 5 * len(points), 4.5), sharex=True, sharey=True, squeeze=False)
    for axes, (buffers, drawn) in zip(panels[0], points.items(), strict=True):
        for name in dict.fromkeys(point.index for point in drawn):
            best = unbeaten([point for point in drawn if point.index == name])
            axes.plot([1000 * point.p95_s for point in best], [1 - point.recall + 1e-4 for point in best], marker="o", label=name)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="95th percentile of a search, ms",
            title=f"{rows:,} vectors, shared_buffers {buffers}",
        )
        axes.grid(True, which="both", alpha=0.3)
    panels[0][0].set_ylabel("missed of the 10 nearest")
    panels[0][0].invert_yaxis()
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=90)


def unbeaten(points: Sequence[Point]) -> list[Point]:
    """Those that none finds more than in less time, quickest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: point.p95_s):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


if __name__ == "__main__":
    main()
