"""
`nv-embed reembed` and what goes with it, as processes: on a table that is written to, and killed wherever it stands.
"""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from program import Program, eventually, failed, succeeded
from servers import Sidecar
from vectors import one
from workers import drain, working

pytestmark = BOTH

ROWS = 300


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def url(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def db(connect: Callable[..., Connection], url: str, sidecar: Sidecar) -> Connection:
    connection = connect()
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    connection.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    connection.execute("INSERT INTO docs SELECT n, 'body ' || n FROM generate_series(1, %s) AS n", [ROWS])
    drain(url, sidecar.address)
    connection.execute(one(connection, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
    return connection


def live(db: Connection) -> tuple[int, str]:
    row = db.execute("SELECT dim, storage FROM nv_embed.status").fetchone()
    assert row is not None
    return row


def test_one_command_goes_all_the_way_and_others_back(db: Connection, url: str, sidecar: Sidecar, program: Program) -> None:
    with working(url, sidecar.address):
        said = succeeded(program("reembed", "docs", "--dim", "512", "--rows-per-s", "1000", "--yes", "--database-url", url))
        assert f"{ROWS}" in said
        assert "CREATE INDEX CONCURRENTLY docs_embedding_g" in said
        assert said.splitlines()[-1] == (
            "public.docs answers by fake, 512 dimensions, halfvec."
            " nv-embed finish public.docs drops the vectors before, nv-embed roll-back public.docs goes back to them."
        )
        assert live(db) == (512, "halfvec")
        assert one(db, "SELECT is_valid FROM nv_embed.vector_indexes('docs')")
        succeeded(program("roll-back", "docs", "--database-url", url))
        assert live(db) == (384, "halfvec")
        assert succeeded(program("finish", "docs", "--database-url", url)) == "public.docs answers by the vectors before.\n"
        assert "no re-embedding of docs is under way" in failed(program("finish", "docs", "--database-url", url))
        ready = json.loads(succeeded(program("reembed", "docs", "--storage", "vector", "--no-cut-over", "--json", "--yes", "--database-url", url)))
        assert (ready["state"], ready["embedded"], ready["to_storage"]) == ("ready", ROWS, "vector")
        assert "not to this --dim" in failed(program("reembed", "docs", "--dim", "512", "--yes", "--database-url", url))
        assert "'unheard-of' is not served" in failed(program("reembed", "docs", "--model", "unheard-of", "--yes", "--database-url", url))
        succeeded(program("cut-over", "docs", "--database-url", url))
        assert live(db) == (384, "vector")
        assert succeeded(program("finish", "docs", "--database-url", url)) == "public.docs: finished.\n"


def test_a_re_embedding_that_somebody_cancels_meanwhile_is_a_failure(db: Connection, url: str, program: Program) -> None:
    arguments = ("reembed", "docs", "--dim", "512", "--yes", "--json", "--database-url", url)
    with program.start(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert eventually(lambda: one(db, "SELECT count(*) FROM nv_embed.reembedding WHERE state = 'backfilling'") == 1)
        succeeded(program("cancel", "docs", "--database-url", url))
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "of public.docs was cancelled" in said.splitlines()[-1]


def test_a_re_embedding_that_was_rolled_back_does_not_go_on(db: Connection, url: str, sidecar: Sidecar, program: Program) -> None:
    arguments = ("reembed", "docs", "--dim", "512", "--yes", "--database-url", url)
    with working(url, sidecar.address):
        succeeded(program(*arguments))
    succeeded(program("roll-back", "docs", "--database-url", url))
    assert "of public.docs was rolled back" in failed(program(*arguments))
    assert live(db) == (384, "halfvec")


def test_a_refused_cut_over_says_how_many_rows_stand_in_its_way(db: Connection, url: str, sidecar: Sidecar, program: Program) -> None:
    with working(url, sidecar.address):
        succeeded(program("reembed", "docs", "--dim", "512", "--no-cut-over", "--yes", "--database-url", url))
    db.execute("INSERT INTO docs SELECT 1000, 'brings one along', embedding FROM docs WHERE id = 1; UPDATE nv_embed.job SET retry_at = 'infinity'")
    said = failed(program("cut-over", "docs", "--database-url", url))
    assert "the generation to be live: 0 wait for a worker, 1 failed, 0 were never queued (see that a worker runs" in said
    assert live(db) == (384, "halfvec")


def test_nobody_is_asked_who_is_not_there(db: Connection, url: str, program: Program) -> None:
    assert "give --yes" in failed(program("reembed", "docs", "--dim", "512", "--database-url", url))
    assert one(db, "SELECT count(*) FROM nv_embed.reembedding") == 0


@EXTENSION
def test_the_estimate_knows_tokens_and_time(db: Connection) -> None:
    rows, is_cut, tokens, seconds, vector_bytes, index_bytes = (
        db.execute("SELECT * FROM nv_embed.estimate_reembed('docs', dim => 512)").fetchone() or ()
    )
    assert (rows, is_cut, vector_bytes) == (ROWS, False, ROWS * (8 + 2 * 512))
    assert tokens >= 2 * ROWS
    assert min(seconds, index_bytes) > 0
    assert db.execute("SELECT is_cut, tokens, seconds FROM nv_embed.estimate_reembed('docs', storage => 'vector')").fetchone() == (True, 0, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_command_that_ends_before_its_time_is_gone_on_with(
    db: Connection, url: str, counter: Counter, program: Program, number: signal.Signals
) -> None:
    arguments = ("reembed", "docs", "--dim", "512", "--yes", "--database-url", url)
    with program.start(*arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert eventually(lambda: one(db, "SELECT count(*) FROM nv_embed.reembedding WHERE state = 'backfilling'") == 1)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "goes on" in said.decode() or "workers go on" in said.decode()
    with working(url, counter.address):
        assert "goes on." in succeeded(program(*arguments))
    assert live(db) == (512, "halfvec")
    assert sorted(text for page in counter.pages for text in page) == sorted(f"body {n}" for n in range(1, ROWS + 1))
