"""
`nv-embed index` as a process: what it builds, says and leaves. Whatever it waits for is a transaction that the test holds open.
"""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Connection
from installs import BOTH, Install
from program import Program, failed, succeeded
from vectors import one

import nv_embed.indexes as indexes_of_vectors
from nv_embed.cli import app
from nv_embed.cli.failure import explain
from nv_embed.indexes import Progress, Resources, Wanted, build

NAME = "docs_embedding_384_halfvec_hnsw"
VECTOR = "(SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE n IS NOT NULL)::real[]::halfvec"

Connect = Callable[..., Connection]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def url(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def db(connect: Connect) -> Connection:
    connection = connect()
    fill(connection)
    return connection


def fill(db: Connection, partition: str = "") -> None:
    db.execute(f"CREATE TABLE docs (id int PRIMARY KEY, body text) {partition}")
    if partition:
        db.execute(
            "CREATE TABLE docs_a PARTITION OF docs FOR VALUES FROM (0) TO (100); CREATE TABLE docs_b PARTITION OF docs FOR VALUES FROM (100) TO (200)"
        )
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'off')")
    db.execute(f"INSERT INTO docs SELECT n, 'text', {VECTOR} FROM generate_series(0, 199) AS n")


def indexes(db: Connection) -> list[tuple[Any, ...]]:
    return db.execute("SELECT index::text, is_valid FROM nv_embed.vector_indexes('docs')").fetchall()


@contextmanager
def writing(connection: Connection, table: str = "docs") -> Iterator[int]:
    """A transaction that has written: no build and no drop goes past it."""
    with connection.transaction():
        connection.execute(f"DELETE FROM {table} WHERE id = 0".encode())
        yield connection.info.backend_pid


@contextmanager
def reading(connection: Connection) -> Iterator[int]:
    """A transaction that has an old snapshot and no lock: a build has to wait for it, a drop need not."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM nv_embed.embedding")
        yield connection.info.backend_pid


@contextmanager
def building(program: Program, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with program.start("index", "docs", *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process


def until(process: "subprocess.Popen[bytes]", text: str) -> str:
    """The line with this text, as soon as it is printed."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.decode())
        if text in lines[-1]:
            return lines[-1]
    raise AssertionError("".join(lines))


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


@BOTH
def test_it_builds_says_whom_it_waits_for_and_does_nothing_the_second_time(program: Program, db: Connection, connect: Connect, url: str) -> None:
    with building(program, "--database-url", url) as process:
        with writing(connect()) as pid:
            line = until(process, f"for process {pid} of {db.info.user}, in a transaction since ")
            assert line.startswith("  waiting for writers before build: ")
            assert "0 of 1 transactions have ended" in line
            assert f"process {process_building(db)} builds an index of docs already" in failed(program("index", "docs", "--database-url", url))
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"{NAME} built in ")
    assert ": 200 rows, " in out or ": 199 rows, " in out
    assert indexes(db) == [(NAME, True)]
    assert succeeded(program("index", "docs", "--database-url", url)).startswith(f"{NAME} is there already: ")


def process_building(db: Connection) -> int:
    return int(one(db, "SELECT pid FROM pg_stat_progress_create_index"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_it_and_leaves_no_index(program: Program, db: Connection, connect: Connect, url: str, number: signal.Signals) -> None:
    with reading(connect()) as pid, building(program, "--database-url", url) as process:
        assert "waiting for old snapshots" in until(process, f"for process {pid} of ")
        process.send_signal(number)
        status, out, err = ended(process)
        assert (status, err) == (130, f"nv-embed: interrupted; the unfinished index public.{NAME} is dropped\n")
        assert f"DROP INDEX CONCURRENTLY public.{NAME}" in out
        assert indexes(db) == []


def test_what_could_not_be_dropped_is_named_and_the_next_run_goes_on_with_the_partitions(program: Program, connect: Connect, url: str) -> None:
    db = connect()
    fill(db, "PARTITION BY RANGE (id)")
    with writing(connect(), "docs_b") as pid, building(program, "--database-url", url) as process:
        until(process, f"for process {pid} of ")
        process.send_signal(signal.SIGINT)
        until(process, "DROP INDEX CONCURRENTLY")
        until(process, f"for process {pid} of ")
        process.send_signal(signal.SIGINT)
        status, _, err = ended(process)
    assert status == 130
    assert f"the unfinished index public.docs_b_{NAME[5:]} is still there" in err
    assert "2 statements are done" in err
    steps = [line for line in succeeded(program("index", "docs", "--database-url", url)).splitlines() if not line.startswith(" ")]
    assert [line.split(" ON ")[0].split(" ATTACH ")[0] for line in steps[:-1]] == [
        f"1/4 DROP INDEX CONCURRENTLY public.docs_b_{NAME[5:]}",
        f"2/4 CREATE INDEX CONCURRENTLY docs_b_{NAME[5:]}",
        f"3/4 ALTER INDEX public.{NAME}",
        f"4/4 ALTER INDEX public.{NAME}",
    ]
    assert steps[-1].startswith(f"{NAME} built in ")
    assert ": 199 rows" in steps[-1] or ": 200 rows" in steps[-1]
    assert indexes(db) == [(NAME, True)]


def test_json_and_list_are_for_programs(program: Program, db: Connection, url: str) -> None:
    arguments = ("index", "docs", "--database-url", url, "--json")
    assert json.loads(succeeded(program(*arguments, "--list"))) == []
    done = program(*arguments, "--storage", "bit", "--no-concurrently", "--m", "8", "--ef-construction", "32")
    built = json.loads(succeeded(done))
    assert built.pop("seconds") >= 0
    size = one(db, "SELECT pg_relation_size('docs_embedding_384_bit_hnsw')")
    assert built == {"index": "docs_embedding_384_bit_hnsw", "dim": 384, "rows": 200, "bytes": size, "was_there": False}
    statement = done.stderr.splitlines()[0]
    assert statement.startswith("CREATE INDEX docs_embedding_384_bit_hnsw ON ")
    assert statement.endswith(" WITH (m = 8, ef_construction = 32)")
    found = {"index": built["index"], "method": "hnsw", "dim": 384, "storage": "bit", "is_valid": True, "is_partial": False, "bytes": size}
    assert json.loads(succeeded(program(*arguments, "--list"))) == [found]
    assert "docs_embedding_384_bit_hnsw  hnsw    384  bit      complete" in succeeded(program("index", "docs", "--database-url", url, "--list"))


def test_memory_that_does_not_do_is_told_with_the_remedy(program: Program, db: Connection, url: str) -> None:
    db.execute(f"INSERT INTO docs SELECT n, 'text', {VECTOR} FROM generate_series(200, 1200) AS n")
    said = succeeded(program("index", "docs", "--database-url", url, "--memory", "1MB"))
    assert "hnsw graph no longer fits into maintenance_work_mem after " in said
    assert "interrupt it and give --memory " in said


@pytest.mark.parametrize("workers", [0, 2])
def test_so_many_processes_help_though_the_table_is_small(db: Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(indexes_of_vectors, "LOOK_S", 0.01)
    db.execute(f"INSERT INTO docs SELECT n, 'text', {VECTOR} FROM generate_series(200, 3000) AS n")
    building = connect()
    helpers = []

    class Looking:
        def begin(self, number: int, count: int, statement: str) -> None: ...

        def progress(self, progress: Progress) -> None:
            helpers.append(one(db, "SELECT count(*) FROM pg_stat_activity WHERE leader_pid = %s", [building.info.backend_pid]))

        def remark(self, text: str) -> None: ...

    build(building, connect(), Wanted("docs"), Looking(), Resources(memory="128MB", workers=workers))
    assert max(helpers) == workers


@BOTH
@pytest.mark.parametrize("how", ["--concurrently", "--no-concurrently"])
def test_where_shared_memory_is_short_one_process_builds(program: Program, db: Connection, url: str, how: str) -> None:
    said = succeeded(program("index", "docs", "--database-url", url, "--memory", "1TB", "--workers", "1", how))
    assert "shared memory is too small for several processes, so one builds alone: give the server more of it" in said
    assert indexes(db) == [(NAME, True)]


def test_one_process_that_builds_then_waits_for_older_transactions_as_ever(db: Connection, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes_of_vectors, "LOOK_S", 0.01)
    monkeypatch.setattr(indexes_of_vectors, "CLEAR_AWAY", indexes_of_vectors.CLEAR_AWAY.replace("5000", "50"))
    writer = connect()

    class Watching:
        waited_since: float | None = None
        is_alone = False

        def begin(self, number: int, count: int, statement: str) -> None:
            if self.is_alone:
                writer.execute("BEGIN; DELETE FROM docs WHERE id = 0")

        def progress(self, progress: Progress) -> None:
            if progress.blocker is not None:
                self.waited_since = self.waited_since or time.monotonic()
                if time.monotonic() - self.waited_since > 0.5:
                    writer.execute("ROLLBACK")

        def remark(self, text: str) -> None:
            self.is_alone = self.is_alone or "one builds alone" in text

    watching = Watching()
    build(connect(), connect(), Wanted("docs"), watching, Resources(memory="1TB", workers=1))
    assert watching.waited_since is not None
    assert indexes(db) == [(NAME, True)]


def test_what_cannot_be_built_is_one_line(
    db: Connection, install: Install, own_database: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NV_EMBED_HOME", str(tmp_path))
    at = ("--database-url", url)
    db.execute("CREATE TABLE wide (id int PRIMARY KEY, body text); SELECT nv_embed.auto_embed('wide', '{body}', mode => 'off')")
    for arguments, says in [
        (["nowhere", *at], 'relation "nowhere" does not exist'),
        (["wide", "--dim", "100", *at], "was not trained for 100 dimensions"),
        (["wide", "--storage", "vector", *at], "an index holds 2000 dimensions of a vector at most, not 2048"),
        (["docs", "--m", "1", *at], 'value 1 out of bounds for option "m"'),
        (["docs", "--lists", "9", *at], 'unrecognized parameter "lists"'),
        (["docs", "--workers", "2000", *at], '2000 is outside the valid range for parameter "max_parallel_maintenance_workers" (0 .. 1024)'),
        (["docs", "--memory", "much", *at], 'invalid value for parameter "maintenance_work_mem": "much"'),
        (["docs", "--database-url", install.dsn(own_database, "app")], "must be owner of table docs"),
        (["docs"], "nothing runs here yet: run `nv-embed up`"),
    ]:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - whatever it is, it must be one that is explained
            app(["index", *arguments], standalone_mode=False)
        assert says in str(explain(raised.value))
    assert indexes(db) == []


def test_a_timeout_is_told_with_what_it_left(program: Program, db: Connection, connect: Connect, url: str) -> None:
    with writing(connect()):
        line = failed(program("index", "docs", "--database-url", f"{url}?options=-c%20lock_timeout%3D50ms"))
    assert line.startswith(f"nv-embed: canceling statement due to lock timeout; the unfinished index public.{NAME} is still there")
    assert indexes(db) == [(NAME, False)]
