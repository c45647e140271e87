"""
What asynchronous embedding costs: the writer, the queue, the way to the vector.

On one PostgreSQL and one sidecar: how much longer an INSERT takes for queueing its rows; how many rows a second one worker takes from the trigger to
the committed vector while an engine that costs nothing stands in for a GPU; what share of a real model's own rate is left, through the same sidecar;
and what it costs to claim jobs, and to look at nv_embed.status, among ten thousand and among millions.

    bench/worker.py [--rows 50000] [--jobs 1000000] [--model minilm] [--texts 500] [--rounds 5]
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import psycopg
from machine import keep, load_average, machine, table
from servers import running_cluster, running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.demo import corpus
from nv_embed.worker import Settings, Worker

Connection = psycopg.Connection[Any]

BATCH = 1000
"""Rows of an INSERT."""

CLAIM = 500
"""Jobs of a claim."""

LEAST_ROWS_S, MOST_WRITE_US, MOST_CLAIM_RATIO, MOST_STATUS_MS, LEAST_OF_ENGINE = 5000, 20, 1.5, 50, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    before = load_average()
    with (
        shared_folder() as folder,
        running_cluster(folder) as cluster,
        running_sidecar(folder, "--model", "fake", "--model", options.model) as sidecar,
    ):
        cluster.create_database("bench")
        with cluster.connect("bench") as db, Client(sidecar.address) as client:
            db.execute("CREATE EXTENSION nv_embed CASCADE")
            db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
            worker = Settings(cluster.dsn("bench"), (sidecar.address,))
            lines = [
                write_overhead(db, options.rows, options.rounds),
                from_trigger_to_vector(db, worker, options.rows),
                of_the_engine(db, client, worker, options.model, options.texts, options.rounds),
                *claiming(db, options.jobs, options.rounds),
            ]
    result = "\n".join(
        [
            "# worker",
            "",
            table(("what", "wanted", "measured", "of"), lines),
            "",
            f"- {machine()}; load average before: {before:.1f}",
            "",
        ]
    )
    keep("worker", result, "cpu")
    print(result)


def declared(db: Connection, name: str, mode: str, model: str = "fake") -> None:
    db.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, title text, body text)")
    db.execute(f"SELECT nv_embed.auto_embed('{name}', '{{title}}: {{body}}', dim => 384, mode => '{mode}', model => '{model}', truncate => 'END')")


def insert(db: Connection, name: str, rows: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    for first in range(0, rows, BATCH):
        db.execute(f"INSERT INTO {name} SELECT n, 'title', 'the body of row ' || n FROM generate_series({first}, {first + BATCH - 1}) AS n")
    return time.perf_counter() - begun


def write_overhead(db: Connection, rows: int, rounds: int) -> tuple[str, ...]:
    db.execute("CREATE TABLE plain (id int PRIMARY KEY, title text, body text, embedding halfvec(384))")
    declared(db, "queued", "async")
    without, queueing = [], []
    for _ in range(rounds):
        db.execute("TRUNCATE plain")
        db.execute("TRUNCATE queued")
        db.execute("VACUUM nv_embed.job")  # of what the round before left there, as autovacuum does sooner or later
        without.append(insert(db, "plain", rows))
        queueing.append(insert(db, "queued", rows))
    db.execute("SELECT nv_embed.drop_auto_embed('queued')")
    base, with_queue = (1e6 * statistics.median(seconds) / rows for seconds in (without, queueing))
    measured = f"{with_queue - base:.1f} µs a row"
    return "queueing a row, over an INSERT without", f"{MOST_WRITE_US} µs", measured, f"{with_queue:.1f} against {base:.1f} µs"


@contextmanager
def working(settings: Settings) -> Iterator[Worker]:
    worker = Worker(settings)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


def from_trigger_to_vector(db: Connection, settings: Settings, rows: int) -> tuple[str, ...]:
    declared(db, "docs", "async")
    with working(settings):
        insert(db, "docs", BATCH)
        db.execute("SELECT nv_embed.wait('docs')")
        db.execute("TRUNCATE docs")
        begun = time.perf_counter()
        insert(db, "docs", rows)
        db.execute("SELECT nv_embed.wait('docs', timeout => '10 min')")
        seconds = time.perf_counter() - begun
    row = db.execute("SELECT count(embedding) FROM docs").fetchone()
    assert row == (rows,)
    what = "from trigger to committed vector, an engine that costs nothing"
    return what, f"{LEAST_ROWS_S:,} rows/s", f"{rows / seconds:,.0f} rows/s", f"{rows:,} rows"


def of_the_engine(db: Connection, client: Client, settings: Settings, model: str, count: int, rounds: int) -> tuple[str, ...]:
    """Both in turns, on one sidecar."""
    texts = [text for text in (entry.doc for entry in corpus.read()) if text][:count]
    name = next(served.name for served in client.list_models() if served.name != "fake")
    declared(db, "passages", "async", name)
    client.embed(texts[:50], model=name, truncate="END")
    alone, whole = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        client.embed([f"title: {text}" for text in texts], model=name, dim=384, truncate="END")
        alone.append(len(texts) / (time.perf_counter() - begun))
        db.execute("TRUNCATE passages")
        with working(settings):
            begun = time.perf_counter()
            db.execute("INSERT INTO passages SELECT n, 'title', body FROM unnest(%s::text[]) WITH ORDINALITY AS t (body, n)", [texts])
            db.execute("SELECT nv_embed.wait('passages', timeout => '10 min')")
            whole.append(len(texts) / (time.perf_counter() - begun))
    ratio = statistics.median(after / before for after, before in zip(whole, alone, strict=True))
    measured = f"{ratio:.0%}"
    return f"{model}, of what the client gets alone", f"{LEAST_OF_ENGINE:.0%}", measured, f"{statistics.median(alone):.1f} texts/s"


def claiming(db: Connection, jobs: int, rounds: int) -> list[tuple[str, ...]]:
    declared(db, "large", "async")
    row = db.execute("SELECT id FROM nv_embed.generation ORDER BY id DESC LIMIT 1").fetchone()
    assert row is not None
    seconds = {}
    for total in (10_000, jobs):
        db.execute("DELETE FROM nv_embed.job")
        db.execute("VACUUM nv_embed.job")
        queue = f"SELECT {row[0]}, ARRAY[n::text]::text, false FROM generate_series(1, {total}) AS n"
        db.execute(f"INSERT INTO nv_embed.job (generation, key, stale) {queue}")
        db.execute("ANALYZE nv_embed.job")
        seconds[total] = statistics.median(claim(db, row[0]) for _ in range(2 * rounds + 1))
    few, many = seconds.values()
    looking = 1000 * statistics.median(look(db) for _ in range(2 * rounds + 1))
    return [
        (
            f"claiming {CLAIM:,} of {jobs:,} jobs, to 10,000",
            f"× {MOST_CLAIM_RATIO}",
            f"× {many / few:.2f}",
            f"{1000 * many:.1f} against {1000 * few:.1f} ms",
        ),
        (f"nv_embed.status beside {jobs:,} jobs", f"{MOST_STATUS_MS} ms", f"{looking:.1f} ms", "one look"),
    ]


def look(db: Connection) -> float:
    begun = time.perf_counter()
    db.execute("SELECT * FROM nv_embed.status").fetchall()
    return time.perf_counter() - begun


def claim(db: Connection, generation: int) -> float:
    """Seconds; the jobs are done at once, as by a worker."""
    begun = time.perf_counter()
    jobs = db.execute("SELECT key, id FROM nv_embed.claim(ARRAY[%s]::bigint[], %s, '1 min')", [generation, CLAIM]).fetchall()
    seconds = time.perf_counter() - begun
    db.execute("SELECT nv_embed.settle(%s, %s, %s::bigint[])", [generation, [key for key, _ in jobs], [id for _, id in jobs]])
    assert len(jobs) == CLAIM
    return seconds


if __name__ == "__main__":
    main()
