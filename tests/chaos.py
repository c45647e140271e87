"""
Everything fails, and nothing is lost.

Writers change a table in every way that there is, while workers, the sidecar and PostgreSQL are killed and connections are cut at random. The table
is embedded twice: row by row, and in pieces. At the end every row must have the vector of just its text, and the pieces of just its text with
theirs; rows whose text cannot be embedded must be in nv_embed.failures and no others, nothing may wait any more, and the numbers of
nv_embed.status must be those of the table.

    tests/chaos.py [--minutes 10] [--seed N] [--library]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from installs import OWNER, install_library, library_database
from servers import Sidecar, running_cluster, running_sidecar, shared_folder
from vectors import cosine, parsed

from nv_embed.client import Client
from nv_embed.cluster import Cluster, ClusterFailed

DATABASE = "chaos"
KEYS = 3000
WRITERS = 4
WORKERS = 2
LEASE_S = 5
RECOVERY_S = 60
DIM = 384
POISON = "word " * 9000
"""More tokens than the model reads."""
CHUNK_TOKENS, CHUNK_OVERLAP = 100, 10

SCHEMA = f"""
    CREATE TABLE docs (id int, part text, title text, body text, views int DEFAULT 0, PRIMARY KEY (id, part)) WITH (fillfactor = 70);
    SELECT nv_embed.auto_embed('docs', '{{title}}: {{body}}', dim => {DIM}, mode => 'async');
    SELECT nv_embed.auto_embed(
        'docs', '{{title}}: {{body}}', target => 'passage', dim => {DIM}, mode => 'async',
        chunk_tokens => {CHUNK_TOKENS}, chunk_overlap => {CHUNK_OVERLAP}
    );
"""


@dataclass
class Report:
    """What happened, and what is wrong."""

    changes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    vectors: int = 0
    pieces: int = 0
    failures: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{sum(self.changes.values()):,} row changes: " + ", ".join(f"{count:,} {name}" for name, count in sorted(self.changes.items())),
            f"{sum(self.faults.values()):,} faults: " + ", ".join(f"{count:,} {name}" for name, count in sorted(self.faults.items())),
            f"{self.rows:,} rows at the end, {self.vectors:,} with the vector of just their text, {self.failures:,} failed that had to",
            f"{self.pieces:,} pieces of just their text, with their vectors",
            *(f"WRONG: {line}" for line in self.wrong[:20]),
        ]
        return "\n".join(lines)


class Row(NamedTuple):
    """One of the table, as it is at the end."""

    id: str
    part: str
    text: str
    blank: bool
    vector: str | None

    @property
    def key(self) -> tuple[str, str]:
        return self.id, self.part

    @property
    def is_poison(self) -> bool:
        return len(self.text) > len(POISON) // 2


class Writer:
    """Changes rows in all ways, one statement or a small transaction at a time."""

    def __init__(self, connect: Callable[[], "psycopg.Connection[Any]"], report: Report, seed: int, truncates: bool) -> None:
        self._connect = connect
        self._report = report
        self._random = random.Random(seed)
        self._truncates = truncates
        self._connection: psycopg.Connection[Any] | None = None

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                if self._connection is None:
                    self._connection = self._connect()
                self._change(self._connection)
            except (psycopg.Error, psycopg.Rollback):  # a connection that is cut in a rollback lets the Rollback through
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                stopping.wait(0.1)
        if self._connection is not None:
            self._connection.close()

    def _change(self, db: "psycopg.Connection[Any]") -> None:
        do = self._random.choices(
            (self._insert, self._update, self._touch, self._blank, self._poison, self._delete, self._move, self._upsert, self._clear, self._truncate),
            (30, 40, 10, 4, 1, 14, 5, 20, 2, 0.2 if self._truncates else 0),
        )[0]
        with db.transaction():
            if self._random.random() < 0.03:
                db.execute("SET LOCAL nv_embed.mode = 'sync'")
            name, count = do(db)
            if self._random.random() < 0.3:
                _, more = self._update(db)
                count += more
            if self._random.random() < 0.05:
                raise psycopg.Rollback
            if self._random.random() < 0.1:
                time.sleep(self._random.uniform(0, 0.2))
        self._report.changes[name] += count

    def _keys(self, most: int) -> list[int]:
        return sorted(self._random.sample(range(KEYS), self._random.randint(1, most)))

    def _text(self) -> str:
        return f"text {self._random.getrandbits(40):x}" + " and so on" * self._random.choice((0, 0, 0, 0, 100))

    def _insert(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        query = (
            "INSERT INTO docs (id, part, title, body) SELECT id, 'p' || id %% 3, 't', %s || id FROM unnest(%s::int[]) AS id ON CONFLICT DO NOTHING"
        )
        return "inserted", db.execute(query, [self._text(), self._keys(60)]).rowcount

    def _update(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "updated", db.execute("UPDATE docs SET body = %s || id WHERE id = ANY (%s)", [self._text(), self._keys(30)]).rowcount

    def _touch(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "touched", db.execute("UPDATE docs SET views = views + 1, body = body WHERE id = ANY (%s)", [self._keys(30)]).rowcount

    def _blank(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "blanked", db.execute("UPDATE docs SET title = NULL, body = ' ' WHERE id = ANY (%s)", [self._keys(5)]).rowcount

    def _poison(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "poisoned", db.execute("UPDATE docs SET body = %s WHERE id = ANY (%s)", [POISON, self._keys(2)]).rowcount

    def _delete(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "deleted", db.execute("DELETE FROM docs WHERE id = ANY (%s)", [self._keys(40)]).rowcount

    def _move(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        query = "UPDATE docs SET part = 'q' || length(part) || right(part, 1) WHERE id = ANY (%s)"
        return "moved", db.execute(query, [self._keys(10)]).rowcount

    def _upsert(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        query = (
            "INSERT INTO docs (id, part, title, body) SELECT id, 'p' || id %% 3, 'u', %s || id FROM unnest(%s::int[]) AS id"
            " ON CONFLICT (id, part) DO UPDATE SET title = excluded.title, body = excluded.body"
        )
        return "upserted", db.execute(query, [self._text(), self._keys(30)]).rowcount

    def _clear(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        return "cleared", db.execute("UPDATE docs SET embedding = NULL WHERE id = ANY (%s)", [self._keys(5)]).rowcount

    def _truncate(self, db: "psycopg.Connection[Any]") -> tuple[str, int]:
        db.execute("TRUNCATE docs")
        return "truncated", 1


class Workers:
    """Worker processes, as a supervisor keeps them."""

    def __init__(self, dsn: str, endpoint: str, log: Path) -> None:
        self._arguments = ["--database-url", dsn, "--endpoint", endpoint, "--lease", str(LEASE_S), "--poll", "0.5", "--timeout", "10"]
        self._log = log
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * WORKERS
        self.keep_up()

    def keep_up(self) -> None:
        for place, process in enumerate(self._processes):
            if process is None or process.poll() is not None:
                with self._log.open("ab") as log:
                    command = [sys.executable, "-m", "nv_embed.cli", "worker", *self._arguments]
                    self._processes[place] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, place: int, number: int) -> None:
        process = self._processes[place]
        if process is not None and process.poll() is None:
            process.send_signal(number)
            process.wait(60)

    def close(self) -> None:
        for place in range(WORKERS):
            self.kill(place, signal.SIGTERM)


class Killer:
    """Does harm, and has things started again."""

    def __init__(self, cluster: Cluster, port: int, sidecar: Sidecar, workers: Workers, report: Report, seed: int) -> None:
        self._cluster, self._port, self._sidecar, self._workers, self._report = cluster, port, sidecar, workers, report
        self._random = random.Random(seed)

    def run(self, stopping: threading.Event) -> None:
        while not stopping.wait(self._random.uniform(0.2, 2.5)):
            harm = self._random.choices((self._cut, self._kill_worker, self._kill_sidecar, self._kill_backend, self._kill_postgres), (6, 4, 3, 2, 1))[
                0
            ]
            with suppress(psycopg.Error, ClusterFailed):
                self._report.faults[harm()] += 1
            self.mend()

    def mend(self) -> None:
        if not self._cluster.is_running():
            self._cluster.start(self._port)
        if self._sidecar.process is None or self._sidecar.process.poll() is not None:
            self._sidecar.start()
        self._workers.keep_up()

    def _cut(self) -> str:
        with self._cluster.connect(DATABASE) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 3"
            )
        return "connections cut"

    def _kill_worker(self) -> str:
        number = self._random.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
        self._workers.kill(self._random.randrange(WORKERS), number)
        return f"workers ended by {number.name}"

    def _kill_sidecar(self) -> str:
        self._sidecar.kill()
        return "sidecars killed"

    def _kill_backend(self) -> str:
        with self._cluster.connect(DATABASE) as db:
            row = db.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
            ).fetchone()
        if row is not None:
            os.kill(row[0], signal.SIGKILL)
        return "backends killed"

    def _kill_postgres(self) -> str:
        running = self._cluster.running()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        while self._cluster.is_running():
            time.sleep(0.05)
        return "servers killed"


def run(minutes: float, seed: int, say: Callable[[str], None] = lambda _: None, *, library: bool = False) -> Report:
    report, stopping = Report(), threading.Event()
    with ExitStack() as stack:
        folder = stack.enter_context(shared_folder())
        cluster = stack.enter_context(running_cluster(folder))
        running = cluster.running()
        assert running is not None
        sidecar = stack.enter_context(running_sidecar(folder, "--model", "fake"))
        dsn = _installed(cluster, sidecar.address, library)
        with _connected(dsn) as db:
            db.execute(SCHEMA)
        workers = Workers(dsn, sidecar.address, folder / "worker.log")
        stack.callback(workers.close)
        writers = [Writer(lambda: _connected(dsn), report, seed + place, place == 0) for place in range(WRITERS)]
        killer = Killer(cluster, running.port, sidecar, workers, report, seed)
        threads = [threading.Thread(target=each.run, args=[stopping]) for each in (*writers, killer)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 60 * minutes
        while time.monotonic() < end:
            time.sleep(min(10.0, max(end - time.monotonic(), 0)))
            say(f"{sum(report.changes.values()):,} row changes, {sum(report.faults.values())} faults")
        stopping.set()
        for thread in threads:
            thread.join()
        killer.mend()
        with _recovered(dsn) as db, Client(sidecar.address) as client:
            _check(db, client, report)
    return report


def _installed(cluster: Cluster, endpoint: str, library: bool) -> str:
    """A database with nv_embed; the library's is an ordinary role's."""
    if library:
        library_database(cluster, DATABASE)
        dsn = cluster.dsn(DATABASE, user=OWNER, password=OWNER)
        install_library(dsn, endpoint)
        return dsn
    cluster.create_database(DATABASE)
    with cluster.connect(DATABASE) as db:
        db.execute("CREATE EXTENSION nv_embed CASCADE")
        db.execute("SELECT nv_embed.configure(%s)", [endpoint])
    return cluster.dsn(DATABASE)


def _connected(dsn: str) -> "psycopg.Connection[Any]":
    return psycopg.connect(dsn, autocommit=True, connect_timeout=5)


def _recovered(dsn: str) -> "psycopg.Connection[Any]":
    """A connection, once the server has recovered from what was killed last."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return _connected(dsn)
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _check(db: "psycopg.Connection[Any]", client: Client, report: Report) -> None:
    db.execute("UPDATE docs SET body = %s WHERE id IN (SELECT id FROM docs ORDER BY id LIMIT 5)", [POISON])
    for target in ("embedding", "passage"):
        db.execute("SELECT nv_embed.wait('docs', %s, timeout => '3 min')", [target])
    left = db.execute("SELECT count(*) FROM nv_embed.job WHERE retry_at IS DISTINCT FROM 'infinity'").fetchone()
    if left != (0,):
        report.wrong.append(f"{left} jobs are left")
    rows = [
        Row(*row)
        for row in db.execute(
            "SELECT id::text, part, concat(title, ': ', body), concat(title, body) !~ '[^[:space:]]', embedding::text FROM docs ORDER BY id, part"
        )
    ]
    report.rows = len(rows)
    _check_rows(db, client, rows, report)
    _check_pieces(db, client, [row for row in rows if not row.blank], report)
    blank, poison = sum(row.blank for row in rows), sum(row.is_poison for row in rows)
    _check_numbers(db, "embedding", (len(rows), len(rows) - blank - poison, 0, poison, blank), report)
    _check_numbers(db, "passage", (len(rows), len(rows) - blank, 0, 0, blank), report)


def _check_rows(db: "psycopg.Connection[Any]", client: Client, rows: Sequence[Row], report: Report) -> None:
    whole = [row for row in rows if not row.blank and not row.is_poison]
    for row, expected in zip(whole, client.embed([row.text for row in whole], dim=DIM), strict=True):
        if row.vector is None:
            report.wrong.append(f"{row.key} has no vector: {row.text}")
        elif cosine(parsed(row.vector), expected) < 0.9999:
            report.wrong.append(f"{row.key} has another text's vector: {row.text}")
        else:
            report.vectors += 1
    report.wrong += [f"{row.key} has a vector, and should not" for row in rows if row.vector is not None and (row.blank or row.is_poison)]
    failed = {tuple(key) for (key,) in db.execute("SELECT key FROM nv_embed.failures")}
    poison = {row.key for row in rows if row.is_poison}
    report.failures = len(failed & poison)
    report.wrong += [f"{key} failed, and should not" for key in failed - poison] + [f"{key} did not fail" for key in poison - failed]


def _check_pieces(db: "psycopg.Connection[Any]", client: Client, rows: Sequence[Row], report: Report) -> None:
    expected = {
        (*row.key, seq, piece.start_char, piece.end_char): row.text[piece.start_char : piece.end_char]
        for row in rows
        for seq, piece in enumerate(client.chunk(row.text, CHUNK_TOKENS, overlap=CHUNK_OVERLAP))
    }
    stored = {
        (id, part, *place): vector
        for id, part, *place, vector in db.execute("SELECT id::text, part, seq, start_char, end_char, passage::text FROM docs_passage_chunk")
    }
    report.wrong += [f"{key} is no piece of any row" for key in stored.keys() - expected.keys()]
    report.wrong += [f"{key} is missing" for key in expected.keys() - stored.keys()]
    present = sorted(stored.keys() & expected.keys())
    for key, vector in zip(present, client.embed([expected[key] for key in present], dim=DIM), strict=True):
        if cosine(parsed(stored[key]), vector) < 0.9999:
            report.wrong.append(f"{key} has another text's vector")
        else:
            report.pieces += 1


def _check_numbers(db: "psycopg.Connection[Any]", target: str, expected: tuple[int, ...], report: Report) -> None:
    told = db.execute("SELECT rows, embedded, pending, failed, blank FROM nv_embed.status WHERE target = %s", [target]).fetchone()
    if told != expected:
        report.wrong.append(f"status of {target} says {told} of {expected}: rows, embedded, pending, failed, blank")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    begun = time.monotonic()
    yield lambda line: print(f"{time.monotonic() - begun:5.0f} s  {line}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--library", action="store_true", help="on the library install, which has no PL/Python and no superuser")
    options = parser.parse_args(arguments)
    print(f"{options.minutes:g} minutes, --seed {options.seed}{' --library' * options.library}", flush=True)
    with _progress() as say:
        report = run(options.minutes, options.seed, say, library=options.library)
    print(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
