"""
What a re-embedding costs, and what others notice of it.

    bench/reembed.py [--rows 100000] [--served 20000] [--rows-per-s 1000]

First vectors of 2048 dimensions are cut to 384, beside one UPDATE of the same rows, which is the quickest that Postgres writes them. Then a table is
embedded anew by the fake model while it is searched and written to: how long queries take without it, with it, and with it held back by rows_per_s,
and how long any of them was kept waiting by the steps that lock the table.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # what is started here is started anew, not forked

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import psycopg
from counting import Counter, counted
from machine import keep, load_average, machine, percentile, table
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from search import a_cluster, load, opened
from servers import Sidecar, running_sidecar, shared_folder
from synthetic import Collection
from workers import working

from nv_embed import library, reembed
from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.reembed import Status

Connection = psycopg.Connection[Any]

WIDE, NARROW = 2048, 384
BETWEEN_S = 0.03
IDLE_S = 15.0


@dataclass
class Latencies:
    """Seconds of queries, by what they did."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"search": [], "update": []})
    failed: list[str] = field(default_factory=list)


class Silent:
    """Nobody watches."""

    def begin(self, number: int, count: int, statement: str) -> None: ...

    def progress(self, progress: object) -> None: ...

    def remark(self, text: str) -> None: ...

    def status(self, status: Status) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=100_000, help="that are cut")
    parser.add_argument("--served", type=int, default=20_000, help="rows of the table that is searched meanwhile")
    parser.add_argument("--rows-per-s", type=float, default=1000)
    options = parser.parse_args()
    before = load_average()
    with shared_folder() as folder, running_sidecar(folder, "--model", "fake") as sidecar, counted(sidecar.address) as counter:
        cut = cutting(options.rows, counter)
        served = serving(options.served, options.rows_per_s, sidecar)
    text = "\n".join(
        ["# reembed", "", *cut, "", *served, "", f"- {machine()}; load average before: {before:.1f}", ""],
    )
    print(text)
    keep("reembed", text)


def cutting(rows: int, counter: Counter) -> list[str]:
    """2048 dimensions to 384, by a worker, and by one UPDATE of Postgres's own on a table with the same triggers."""
    say(f"cutting {rows:,} rows")
    with a_cluster() as cluster, opened(cluster, "2GB") as db:
        load(db, Collection(rows, WIDE))
        db.execute(f"ALTER TABLE docs ADD COLUMN plain halfvec({NARROW})")
        begun = time.perf_counter()
        db.execute(f"UPDATE docs SET plain = nv_truncate(embedding, {NARROW})::halfvec({NARROW})")
        plain_s = time.perf_counter() - begun
        db.execute("VACUUM docs")
        id = reembed.begin(db, reembed.Wanted("docs", dim=NARROW))
        begun = time.perf_counter()
        with working(cluster.dsn("bench"), counter.address), cluster.connect("bench") as watching:
            reembed.drive(db, watching, id, Silent())
        ours_s = time.perf_counter() - begun
        begun = time.perf_counter()
        reembed.cut_over(db, id)
        over_s = time.perf_counter() - begun
    calls = len(counter.pages)
    return [
        f"## {rows:,} rows from {WIDE} to {NARROW} dimensions",
        "",
        *table(
            ("", "s", "rows a second"),
            [("a worker, in steps", f"{ours_s:.1f}", f"{rows / ours_s:,.0f}"), ("one UPDATE", f"{plain_s:.1f}", f"{rows / plain_s:,.0f}")],
        ).splitlines(),
        "",
        f"- a worker over one UPDATE: **× {ours_s / plain_s:.2f}**",
        f"- calls of the sidecar: **{calls}** (wanted: 0)",
        f"- cut over in {1000 * over_s:.0f} ms",
    ]


def serving(rows: int, rows_per_s: float, sidecar: Sidecar) -> list[str]:
    """Latencies without a re-embedding, with one, and with one that is held back."""
    say(f"embedding {rows:,} rows anew while they are searched")
    with a_cluster() as cluster:
        record_models(cluster, sidecar.address)
        with opened(cluster, "2GB") as db, worker_process(cluster.dsn("bench"), sidecar.address):
            db.execute("CREATE TABLE served (id int PRIMARY KEY, body text)")
            db.execute(f"SELECT nv_embed.auto_embed('served', '{{body}}', dim => {NARROW}, mode => 'async')")
            db.execute("INSERT INTO served SELECT n, 'text number ' || n || ' of many' FROM generate_series(1, %s) AS n", [rows])
            assert db.execute("SELECT nv_embed.wait('served', timeout => '10 min')").fetchone() == (True,)
            (statement,) = db.execute("SELECT nv_embed.create_index_sql('served', concurrently => false)").fetchone() or ("",)
            db.execute(statement)
            db.execute("VACUUM ANALYZE served")
            with Client(sidecar.address) as client:
                asked = {dim: HalfVector(client.embed(["text number 77 of many"], dim=dim)[0]) for dim in (NARROW, 512)}
            with traffic(cluster, rows, asked) as idle:
                time.sleep(IDLE_S)
            runs = {"without": (idle, IDLE_S, [0.0])}
            for name, limit in (("unlimited", None), (f"{rows_per_s:.0f} rows a second", rows_per_s)):
                with traffic(cluster, rows, asked) as seen:
                    begun = time.perf_counter()
                    steps = move(db, cluster, limit)
                    runs[name] = (seen, time.perf_counter() - begun, steps)
    lines = []
    for name, (seen, took, steps) in runs.items():
        cells = [
            f"{1000 * f(seen.seconds[kind]):.1f}" for kind in ("search", "update") for f in (statistics.median, lambda s: percentile(s, 95), max)
        ]
        lines.append((name, f"{took:.0f}", *cells, f"{1000 * max(steps):.0f}", str(len(seen.failed))))
    header = ("re-embedding", "s", "search p50, ms", "p95", "longest", "update p50, ms", "p95", "longest", "longest step, ms", "failed")
    limited = next(reversed(runs.values()))[0]
    ratios = {kind: percentile(limited.seconds[kind], 95) / percentile(idle.seconds[kind], 95) for kind in idle.seconds}
    return [
        f"## {rows:,} rows from {NARROW} to 512 dimensions and back, searched and written to every {1000 * BETWEEN_S:.0f} ms",
        "",
        *table(header, lines).splitlines(),
        "",
        f"- p95 with rows_per_s over that without a re-embedding: **search × {ratios['search']:.2f}, update × {ratios['update']:.2f}** (wanted: 1.5)",
        "- a step is reembed, cut_over or finish: what it takes, waiting for its turn and for what was queued before it included. How long others"
        " were kept waiting is what the longest searches and updates took (wanted: 100 ms)",
    ]


@contextmanager
def worker_process(dsn: str, endpoint: str) -> Iterator[None]:
    """A worker of its own: in this process it would keep those from running who are timed."""
    command = [sys.executable, "-m", "nv_embed.cli", "worker", "--database-url", dsn, "--endpoint", endpoint]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


def move(db: Connection, cluster: Cluster, limit: float | None) -> list[float]:
    """There and back. Returns the seconds of each step that locks the table."""
    steps = []
    for dim in (512, NARROW):
        begun = time.perf_counter()
        id = reembed.begin(db, reembed.Wanted("served", dim=dim, rows_per_s=limit))
        steps.append(time.perf_counter() - begun)
        with cluster.connect("bench") as watching:
            reembed.drive(db, watching, id, Silent())
        for step in (reembed.cut_over, reembed.finish):
            begun = time.perf_counter()
            step(db, id)
            steps.append(time.perf_counter() - begun)
    return steps


@contextmanager
def traffic(cluster: Cluster, rows: int, asked: dict[int, HalfVector]) -> Iterator[Latencies]:
    """One connection that searches and one that writes, until the block ends."""
    over, seen = threading.Event(), Latencies()

    def search(db: Connection) -> None:
        with db.transaction():
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            (dim,) = db.execute("SELECT dim FROM nv_embed.status WHERE target = 'embedding'").fetchone() or (0,)
            found = db.execute("SELECT (hit).id FROM nv_search(NULL::served, %b::halfvec::vector, k => 1)", [asked[dim]]).fetchone()
        assert found == (77,), found

    def update(db: Connection) -> None:
        key = random.randrange(1000, rows)
        db.execute("UPDATE served SET body = 'text number ' || id || ' of very many ' || random() WHERE id = %s", [key])

    def run(kind: str, work: Any) -> None:
        with cluster.connect("bench") as db:
            register_vector(db)
            while not over.wait(BETWEEN_S):
                begun = time.perf_counter()
                try:
                    work(db)
                except psycopg.Error as error:
                    seen.failed.append(str(error))
                seen.seconds[kind].append(time.perf_counter() - begun)

    threads = [threading.Thread(target=run, args=pair) for pair in (("search", search), ("update", update))]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in threads:
            thread.join()


def record_models(cluster: Cluster, endpoint: str) -> None:
    """What the sidecar serves, in place of the synthetic model."""
    with Client(endpoint) as client, psycopg.connect(cluster.dsn("bench")) as connection:
        library.install(connection, None, endpoint, client.list_models())


def say(what: str) -> None:
    print(time.strftime("%H:%M:%S"), what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
