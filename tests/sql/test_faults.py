"""
A sidecar that is down, slow, dying or coming back; a statement that is cancelled; a backend's threads.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from servers import Sidecar, running_sidecar
from vectors import one

from nv_embed.cluster import Cluster


@pytest.fixture
def slow(folder: Path) -> Iterator[Sidecar]:
    """A sidecar whose every batch takes 5 s."""
    with running_sidecar(folder, "--model", "fake", "--fake-delay-s", "5", "--drain-s", "0", name="slow.sock") as running:
        yield running


@pytest.fixture
def mortal(folder: Path) -> Iterator[Sidecar]:
    """A sidecar that a test may kill."""
    with running_sidecar(folder, "--model", "fake", "--fake-delay-s", "0.5", name="mortal.sock") as running:
        yield running


def test_a_sidecar_that_is_down_is_one_readable_error(connect: Callable[..., Connection], sidecar: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure('unix:/nonexistent/sidecar.sock')")
    begun = time.monotonic()
    with pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT nv_embed('x')")
    assert raised.value.sqlstate == "58000"
    assert raised.value.diag.message_primary == "nv_embed: no answer from the configured sidecar: the connection failed"
    assert time.monotonic() - begun < 5
    assert one(db, "SELECT serving FROM nv_embed.health()") is False
    db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
    assert one(db, "SELECT vector_dims(nv_embed('x', 384))") == 384


def test_before_it_is_configured_the_error_says_how(connect: Callable[..., Connection]) -> None:
    db = connect()
    db.execute("UPDATE nv_embed.settings SET endpoint = NULL")
    with pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT nv_embed('x')")
    assert raised.value.sqlstate == "58000"
    assert "nv_embed.configure" in (raised.value.diag.message_hint or "")


def test_a_slow_sidecar_meets_the_deadline(connect: Callable[..., Connection], slow: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s, 0.5)", [slow.address])
    begun = time.monotonic()
    with pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT nv_embed('x')")
    assert 0.4 < time.monotonic() - begun < 2
    assert raised.value.sqlstate == "57014"
    assert "did not answer within 0.5 s" in str(raised.value)
    assert one(db, "SELECT 1") == 1


def test_statement_timeout_ends_a_waiting_call_within_a_fifth_of_a_second(connect: Callable[..., Connection], slow: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s)", [slow.address])
    one(db, "SELECT serving FROM nv_embed.health()")
    db.execute("SET statement_timeout = '400ms'")
    for call in ("nv_embed('x')", "nv_embed(ARRAY['x', 'y'])", "nv_embed_query('x')"):
        begun = time.monotonic()
        with pytest.raises(psycopg.errors.QueryCanceled) as raised:
            db.execute(f"SELECT {call}")
        assert time.monotonic() - begun < 0.4 + 0.2
        assert raised.value.diag.message_primary == "nv_embed: canceling statement due to statement timeout"
    db.execute("RESET statement_timeout")
    assert one(db, "SELECT serving FROM nv_embed.health()") is True


def test_ctrl_c_and_termination_end_a_waiting_call_at_once(connect: Callable[..., Connection], slow: Sidecar) -> None:
    db, other = connect(), connect()
    db.execute("SELECT nv_embed.configure(%s)", [slow.address])
    pid = db.info.backend_pid
    for end, expected in (("pg_cancel_backend", psycopg.errors.QueryCanceled), ("pg_terminate_backend", psycopg.OperationalError)):
        raised: list[tuple[type[BaseException], float]] = []

        def call(found: list[tuple[type[BaseException], float]] = raised) -> None:
            try:
                db.execute("SELECT nv_embed('x')")
            except psycopg.Error as error:
                found.append((type(error), time.monotonic()))

        thread = threading.Thread(target=call)
        thread.start()
        while not one(other, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [pid]):
            pass
        one(other, "SELECT pg_sleep(0.2)")
        begun = time.monotonic()
        other.execute(f"SELECT {end}(%s)", [pid])
        thread.join()
        kind, ended = raised[0]
        assert issubclass(kind, expected)
        assert ended - begun < 0.2


def test_a_sidecar_that_dies_in_the_middle_of_a_call_writes_nothing(connect: Callable[..., Connection], mortal: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s)", [mortal.address])
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    killer = threading.Timer(0.7, mortal.kill)
    killer.start()
    with pytest.raises(psycopg.Error) as raised:
        db.execute("INSERT INTO docs SELECT n, 'text ' || n FROM generate_series(1, 5000) AS n")
    killer.join()
    assert raised.value.sqlstate == "58000"
    assert one(db, "SELECT count(*) FROM docs") == 0
    mortal.start()
    db.execute("INSERT INTO docs VALUES (1, 'text')")
    assert one(db, "SELECT count(embedding) FROM docs") == 1


def test_a_frozen_sidecar_meets_the_deadline_and_is_used_again_when_it_thaws(connect: Callable[..., Connection], mortal: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s, 2)", [mortal.address])
    assert one(db, "SELECT vector_dims(nv_embed('x', 384))") == 384
    mortal.signal(signal.SIGSTOP)
    with pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT nv_embed('y')")
    assert raised.value.sqlstate == "57014"
    mortal.signal(signal.SIGCONT)
    assert one(db, "SELECT vector_dims(nv_embed('y', 384))") == 384


def test_a_restarted_sidecar_is_found_again_by_an_old_session(connect: Callable[..., Connection], mortal: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s)", [mortal.address])
    one(db, "SELECT vector_dims(nv_embed('x', 384))")
    mortal.kill()
    mortal.start()
    assert one(db, "SELECT vector_dims(nv_embed('y', 384))") == 384


def threads_that_take_signals(pid: int) -> list[str]:
    """Threads of a backend, but its main one, that do not block every signal that can be blocked."""
    open_threads = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        blocked = int(status["SigBlk"], 16)
        wanted = sum(1 << (number - 1) for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
        if int(task.name) != pid and blocked & wanted != wanted:
            open_threads.append(f"{status['Name']} {status['SigBlk']}")
    return open_threads


def test_no_thread_in_a_backend_can_take_a_signal_of_postgres(connect: Callable[..., Connection], mortal: Sidecar) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s)", [mortal.address])
    pid = db.info.backend_pid
    one(db, "SELECT vector_dims(nv_embed('x', 384))")
    one(db, "SELECT cardinality(nv_embed((SELECT array_agg('t ' || n) FROM generate_series(1, 700) AS n), 384))")
    mortal.kill()
    with pytest.raises(psycopg.Error):
        db.execute("SELECT nv_embed('x')")
    mortal.start()
    one(db, "SELECT vector_dims(nv_embed('z', 384))")
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    assert threads_that_take_signals(pid) == []


def test_a_session_that_called_ends_cleanly_with_the_server(cluster: Cluster, connect: Callable[..., Connection], sidecar: Sidecar) -> None:
    before = cluster.log.stat().st_size
    for _ in range(5):
        db = connect()
        one(db, "SELECT vector_dims(nv_embed('x', 384))")
        pid = db.info.backend_pid
        db.close()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, "the backend does not end"
    said = cluster.log.read_bytes()[before:].decode()
    assert "terminated by signal" not in said
    assert "crash" not in said
