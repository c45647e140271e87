"""
A streaming standby: what can be asked of it, and what is refused.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from program import eventually
from servers import Sidecar
from vectors import one

from nv_embed.cluster import Cluster, _run
from nv_embed.home import give_to_postgres

WORKER_HEALTH = Path(__file__).resolve().parents[2] / "docker" / "worker-health"


@pytest.fixture
def primary(connect: Callable[..., Connection]) -> Connection:
    """Two tables with vectors, one of them in pieces, and an index."""
    db = connect()
    for table, pieces in (("docs", ""), ("manuals", ", chunk_tokens => 20")):
        db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
        db.execute(f"SELECT nv_embed.auto_embed('{table}', '{{body}}', dim => 384{pieces})")
        db.execute(f"INSERT INTO {table} SELECT n, 'body of number ' || n FROM generate_series(1, 50) AS n")
    db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    return db


@pytest.fixture
def standby(cluster: Cluster, primary: Connection, folder: Path) -> Iterator[Cluster]:
    """A copy of the whole server that follows it."""
    home = folder / "standby"
    home.mkdir()
    give_to_postgres(home)
    copied = _run("pg_basebackup", "--pgdata", str(home / "data"), "--dbname", cluster.dsn(), "--write-recovery-conf", "--checkpoint", "fast")
    assert copied.returncode == 0, copied.stderr
    follower = replace(cluster, data_dir=home / "data", socket_dir=home, log_file=None)
    follower.start()
    try:
        yield follower
    finally:
        follower.delete()
        home.rmdir()


@pytest.fixture
def follower(standby: Cluster, primary: Connection) -> Iterator[Connection]:
    with psycopg.connect(standby.dsn(primary.info.dbname), autocommit=True) as connection:
        assert one(connection, "SELECT pg_is_in_recovery()")
        yield connection


@pytest.fixture
def both(cluster: Cluster, standby: Cluster, primary: Connection) -> str:
    """The URL of two hosts, the standby first."""
    first, second = (server.running().port for server in (standby, cluster))  # type: ignore[union-attr]
    return cluster.dsn(primary.info.dbname).replace(f"127.0.0.1:{second}", f"127.0.0.1:{first},127.0.0.1:{second}")


READS = [
    "SELECT vector_dims(nv_embed_query('number 7', 384))",
    "SELECT vector_dims(nv_embed('number 7', 384))",
    "SELECT (hit).id FROM nv_search(NULL::docs, 'body of number 7', k => 3)",
    "SELECT (hit).id FROM nv_search(NULL::manuals, 'body of number 7', k => 3)",
    "SELECT (hit).id FROM nv_search(NULL::docs, nv_embed_query('body of number 7', 'docs'::regclass), k => 3)",
    "SELECT (hit).id FROM nv_hybrid_search(NULL::docs, 'body of number 7', k => 3)",
    "SELECT id FROM docs ORDER BY embedding <=> nv_embed_query('body of number 7', 384) LIMIT 3",
    "SELECT name FROM nv_embed.models()",
    "SELECT serving FROM nv_embed.health()",
    "SELECT relation::text, target, rows, embedded, pending, failed, coverage FROM nv_embed.status ORDER BY 1",
    "SELECT * FROM nv_embed.failures",
    "SELECT * FROM nv_embed.reembedding_status",
    "SELECT index FROM nv_embed.vector_indexes('docs')",
    "SELECT nv_embed.wait('docs')",
]
WRITES = [
    "INSERT INTO docs VALUES (99, 'text')",
    "SELECT nv_embed.auto_embed('docs', '{body}', 'other')",
    "SELECT nv_embed.refresh('docs')",
    "SELECT nv_embed.retry()",
    "SELECT nv_embed.configure('127.0.0.1:1')",
    "SELECT nv_embed.reembed('docs', dim => 512)",
]


def test_a_standby_answers_as_its_primary_does_and_refuses_writes_as_read_only(primary: Connection, follower: Connection) -> None:
    for query in READS:
        assert follower.execute(query).fetchall() == primary.execute(query).fetchall(), query
    for statement in WRITES:
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            follower.execute(statement)
    primary.execute("INSERT INTO docs VALUES (51, 'an owl that nobody has seen')")
    search = "SELECT (hit).id FROM nv_search(NULL::docs, 'an owl that nobody has seen', k => 1)"
    assert eventually(lambda: one(follower, search) == 51)


def test_a_worker_refuses_a_standby_and_of_two_hosts_takes_the_primary(standby: Cluster, both: str, primary: Connection, sidecar: Sidecar) -> None:
    primary.execute("SELECT nv_embed.alter_auto_embed('docs', 'embedding', mode => 'async')")
    primary.execute("INSERT INTO docs VALUES (51, 'text')")

    def worker(url: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "nv_embed.cli", "worker", "--database-url", url, "--endpoint", sidecar.address, "--once", "--timeout", "2"]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)

    refused = worker(standby.dsn(primary.info.dbname))
    assert refused.returncode == 1
    assert "session is read-only" in refused.stderr
    assert "cannot execute" not in refused.stderr
    done = worker(both)
    assert (done.returncode, done.stderr) == (0, "")
    assert one(primary, "SELECT embedding IS NOT NULL FROM docs WHERE id = 51")


def test_of_two_hosts_a_worker_s_health_check_asks_the_one_that_the_worker_tells(both: str, primary: Connection) -> None:
    primary.execute("SELECT nv_embed.beat(NULL, %s, true, '{}')", [f"{socket.gethostname()}:1"])
    environment = {**os.environ, "NV_EMBED_DATABASE_URL": both}
    said = subprocess.run(
        [sys.executable, WORKER_HEALTH], stdin=subprocess.DEVNULL, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "seen\n", "")
