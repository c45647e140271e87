"""
`nv-embed worker` as a process, and some seconds of chaos.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import chaos
import httpx
import pytest
from conftest import Connection
from program import eventually
from prometheus_client.parser import text_string_to_metric_families
from servers import Sidecar
from vectors import one

from nv_embed.cluster import Cluster

CHAOS_MINUTES = 0.5


@pytest.fixture
def docs(connect: Callable[..., Connection]) -> Connection:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    db.execute("INSERT INTO docs SELECT n, 'body ' || n FROM generate_series(1, 500) AS n")
    return db


@pytest.fixture
def url(cluster: Cluster, own_database: str) -> str:
    return cluster.dsn(own_database)


def worker(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "nv_embed.cli", "worker", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_once_ends_when_nothing_is_due_and_says_what_was_done(docs: Connection, url: str) -> None:
    docs.execute("INSERT INTO docs VALUES (0, repeat('word ', 9000))")
    ended = worker("--database-url", url, "--once", "--json")
    out, err = ended.communicate(timeout=60)
    assert (ended.returncode, err) == (0, "")
    done = json.loads(out.splitlines()[-1])
    assert (done["embedded"], done["failed"]) == (500, 1)
    plain = worker("--database-url", url, "--once")
    assert plain.communicate(timeout=60)[0].startswith("0 rows embedded in ")
    assert one(docs, "SELECT count(embedding) FROM docs") == 500


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_batches_under_way_be_written(docs: Connection, url: str, number: signal.Signals) -> None:
    running = worker("--database-url", url)
    assert eventually(lambda: one(docs, "SELECT count(embedding) FROM docs") > 0)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (0, "")
    assert int(out.split()[0]) == one(docs, "SELECT count(embedding) FROM docs")
    assert one(docs, "SELECT count(*) FROM nv_embed.job WHERE leased_until > clock_timestamp()") == 0


def test_prometheus_is_told_what_was_done_and_how_far_the_tables_are(docs: Connection, url: str, cluster: Cluster) -> None:
    docs.execute("INSERT INTO docs VALUES (0, repeat('word ', 9000))")
    running = worker("--database-url", url, "--metrics", "127.0.0.1:0")
    assert running.stderr is not None
    address = running.stderr.readline().split()[-1]

    def told(name: str, **labels: str) -> float | None:
        families = text_string_to_metric_families(httpx.get(address).text)
        samples = [sample for family in families for sample in family.samples if sample.name == name and sample.labels.items() >= labels.items()]
        return sum(sample.value for sample in samples) if samples else None

    assert eventually(lambda: told("nv_embed_rows_embedded", relation="public.docs", target="embedding") == 500)
    assert eventually(lambda: told("nv_embed_worker_embedded_rows_total", relation="public.docs") == 500)
    assert told("nv_embed_worker_claimed_rows_total") == 501
    assert told("nv_embed_worker_failed_rows_total") == told("nv_embed_rows_failed") == 1
    assert told("nv_embed_rows") == 501
    assert told("nv_embed_coverage") == pytest.approx(500 / 501)
    assert told("nv_embed_oldest_pending_seconds") is None
    assert told("nv_embed_reembedding_progress") is None
    docs.execute("SELECT nv_embed.reembed('docs', dim => 768, rows_per_s => 1)")
    assert eventually(lambda: 0 <= (told("nv_embed_reembedding_progress", relation="public.docs", state="backfilling") or -1) < 1)
    assert told("nv_embed_database_up") == 1
    docs.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    assert told("nv_embed_database_up") == 0
    assert eventually(lambda: told("nv_embed_database_up") == 1)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)
    assert running.returncode == 0
    ended = worker("--database-url", url, "--metrics", "nowhere")
    assert ended.communicate(timeout=60)[1] == "nv-embed: 'nowhere' is not an address (give host:port, or host:0 for any free port)\n"
    assert ended.returncode == 1


def test_what_a_worker_cannot_begin_with_is_one_line(docs: Connection, url: str, cluster: Cluster, sidecar: Sidecar) -> None:
    docs.execute("UPDATE nv_embed.settings SET endpoint = NULL")
    for arguments, line in [
        (["--database-url", url], "nv-embed: no sidecar is configured in this database (give --endpoint host:port, or unix:/path)"),
        (["--database-url", cluster.dsn()], "nv-embed: nv_embed is not installed in this database (run `nv-embed install --database-url …`)"),
    ]:
        ended = worker(*arguments)
        assert ended.communicate(timeout=60)[1].strip() == line
        assert ended.returncode == 1


def test_once_gives_up_on_a_sidecar_that_is_away(docs: Connection, url: str) -> None:
    ended = worker("--database-url", url, "--endpoint", "127.0.0.1:1", "--once", "--timeout", "1")
    out, err = ended.communicate(timeout=60)
    assert ended.returncode == 1
    assert err.splitlines()[-1].startswith("nv-embed: ")
    assert "127.0.0.1:1" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert out.startswith("0 rows embedded")
    assert one(docs, "SELECT count(*) FROM nv_embed.job WHERE leased_until > clock_timestamp()") == 0


@pytest.mark.slow
def test_nothing_is_lost_stale_or_mixed_up_whatever_is_killed() -> None:
    report = chaos.run(CHAOS_MINUTES, seed=20261126)
    assert sum(report.changes.values()) > 1000
    assert len(report.faults) >= 3
    assert report.wrong == [], str(report)
