"""
A re-embedding whose worker, sidecar and database are killed in each of its states: it goes on, and embeds nothing twice that was committed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from counting import Counter, counted
from program import eventually
from servers import Sidecar, running_cluster, running_sidecar, shared_folder
from vectors import cosine, one, parsed

from nv_embed.client import Client
from nv_embed.cluster import Cluster

ROWS = 1500


@dataclass
class Site:
    """A database, a sidecar that takes its time, and a worker; all of them a test's own."""

    cluster: Cluster
    sidecar: Sidecar
    counter: Counter
    worker: "subprocess.Popen[bytes] | None" = None

    def connect(self) -> Connection:
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.cluster.connect("postgres")
            except psycopg.OperationalError:  # it recovers
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def start_worker(self) -> None:
        command = [sys.executable, "-m", "nv_embed.cli", "worker", "--database-url", self.cluster.dsn(), "--endpoint", self.counter.address]
        self.worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill_all(self) -> None:
        """SIGKILL to the worker, the sidecar and the postmaster; what is left of them is waited for, and sidecar and database come back."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
            self.worker = None
        self.sidecar.kill()
        running = self.cluster.running()
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        assert eventually(lambda: self.cluster.running() is None)
        self.cluster.start()
        self.sidecar.start()

    def kill_postgres_during(self, statement: str) -> None:
        """A statement that never ends by itself, because a transaction is open that it has to wait for."""
        holder, builder = self.connect(), self.connect()
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1; UPDATE docs SET id = id WHERE id = 1")

        def build() -> None:
            with suppress(psycopg.Error):
                builder.execute(statement.encode())

        thread = threading.Thread(target=build)
        thread.start()
        with self.connect() as looker:
            assert eventually(lambda: one(looker, "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting%'") == 1)
        self.kill_all()
        thread.join(30)
        for connection in (holder, builder):
            connection.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with (
        shared_folder() as folder,
        running_cluster(folder, synchronous_commit="on") as cluster,  # what is committed outlives the server's death
        running_sidecar(Path(folder), "--model", "fake", "--fake-delay-s", "0.2") as sidecar,
        counted(sidecar.address) as counter,
    ):
        made = Site(cluster, sidecar, counter)
        yield made
        if made.worker is not None:
            made.worker.kill()
            made.worker.wait()


def right(db: Connection, endpoint: str, dim: int) -> int:
    rows = db.execute("SELECT id, body, embedding::text FROM docs WHERE embedding IS NOT NULL").fetchall()
    with Client(endpoint) as client:
        expected = client.embed([body for _, body, _ in rows], dim=dim)
    for (key, _, stored), vector in zip(rows, expected, strict=True):
        assert cosine(parsed(stored), vector) > 0.999, key
    return len(rows)


def advance(db: Connection, id: int, wanted: str) -> None:
    assert eventually(lambda: one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == wanted, 120)


@pytest.mark.slow
def test_each_state_outlives_the_death_of_all(site: Site) -> None:
    with site.connect() as db:
        db.execute("CREATE EXTENSION nv_embed CASCADE")
        db.execute("SELECT nv_embed.configure(%s)", [site.counter.address])
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
        db.execute("INSERT INTO docs SELECT n, 'body ' || n FROM generate_series(1, %s) AS n", [ROWS])
        site.start_worker()
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '2 min')")
        db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
        site.counter.pages.clear()
        id = one(db, "SELECT nv_embed.reembed('docs', dim => 512)")
        column = one(db, "SELECT target FROM nv_embed.generation WHERE state = 'next'")
        assert eventually(lambda: one(db, f"SELECT count({column}) FROM docs") > 0)
    site.kill_all()

    with site.connect() as db:  # backfilling
        committed = {body for (body,) in db.execute(f"SELECT body FROM docs WHERE {column} IS NOT NULL")}
        assert 0 < len(committed) < ROWS
        assert one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) == "backfilling"
        site.counter.pages.clear()
        db.execute("UPDATE nv_embed.job SET leased_until = NULL")  # nobody waits a minute for the lease of the dead
        site.start_worker()
        advance(db, id, "indexing")
        assert sorted(text for page in site.counter.pages for text in page) == sorted({f"body {n}" for n in range(1, ROWS + 1)} - committed)
        (step,) = (step for (step,) in db.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id]))
    site.kill_postgres_during(step)

    with site.connect() as db:  # indexing
        assert one(db, "SELECT state FROM nv_embed.reembedding_status") == "indexing"
        steps = [step for (step,) in db.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id])]
        assert [step.split(" ON ")[0].split()[0] for step in steps] == ["DROP", "CREATE"]
        for step in steps:
            db.execute(step.encode())
        advance(db, id, "ready")
    site.kill_all()

    site.counter.pages.clear()
    site.start_worker()
    with site.connect() as db:  # ready
        db.execute("UPDATE docs SET body = 'changed' WHERE id = 7")
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
        assert right(db, site.sidecar.address, 512) == ROWS
    site.kill_all()

    site.start_worker()
    with site.connect() as db:  # live
        assert one(db, "SELECT state FROM nv_embed.reembedding_status") == "live"
        db.execute("UPDATE docs SET body = 'changed again' WHERE id = 8")
        db.execute("SELECT nv_embed.roll_back(%s)", [id])
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '1 min')")
        assert right(db, site.sidecar.address, 384) == ROWS
        assert {text for page in site.counter.pages for text in page} == {"changed", "changed again"}
    site.kill_all()

    with site.connect() as db:  # rolled_back
        db.execute("SELECT nv_embed.finish(%s)", [id])
        assert one(db, "SELECT count(*) FROM nv_embed.generation") == 1
        assert right(db, site.sidecar.address, 384) == ROWS
