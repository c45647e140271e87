"""
`nv-embed demo`, on servers of its own.
"""

import json
import signal
import subprocess
from collections.abc import Iterator

import psycopg
import pytest
from program import Program, failed, program_with_own_home, succeeded

SMALL = ("--limit", "250")


@pytest.fixture(scope="module")
def home() -> Iterator[Program]:
    with program_with_own_home() as own:
        yield own


@pytest.fixture
def program(home: Program) -> Program:
    """The program with nothing running."""
    home("down")
    return home


@pytest.fixture
def up(home: Program) -> Program:
    """The program with its servers up, as if a developer used them."""
    succeeded(home("up", "--model", "fake"))
    return home


def query(program: Program, statement: str) -> object:
    with psycopg.connect(succeeded(program("dsn")).strip(), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return None if row is None else row[0]


def has_table(program: Program) -> bool:
    return query(program, "SELECT to_regclass('public.python_docs') IS NOT NULL OR EXISTS (SELECT FROM nv_embed.embedding)") is True


def test_from_nothing_to_answers_and_back_to_nothing(program: Program) -> None:
    said = succeeded(program("demo", "--model", "fake", *SMALL))
    assert "by meaning" in said
    assert "Recall@5" in said
    assert "rows/s" in said
    assert "\x1b" not in said
    assert program.processes() == []


def test_one_json_document_for_programs(up: Program) -> None:
    found = json.loads(succeeded(up("demo", "--json", *SMALL)))
    assert found["corpus"]["rows"] == 250
    assert found["model"]["name"] == "fake"
    assert found["model"]["dim"] == 384
    assert found["questions"] == len(found["answers"]) >= 48
    for way in ("by_meaning", "by_full_text"):
        places = [answer[way]["place"] for answer in found["answers"]]
        assert found[way]["recall_at_1"] == pytest.approx(places.count(1) / len(places), abs=1e-4)
        assert found[way]["recall_at_5"] == pytest.approx(sum(place is not None for place in places) / len(places), abs=1e-4)


def test_servers_that_ran_before_go_on_without_the_table(up: Program) -> None:
    succeeded(up("demo", "--json", *SMALL))
    assert up.status()["up"]
    assert not has_table(up)


def test_keep_leaves_a_table_that_the_next_demo_replaces(program: Program) -> None:
    succeeded(program("demo", "--model", "fake", "--keep", *SMALL))
    assert program.status()["up"]
    assert query(program, "SELECT count(embedding) FROM python_docs") == 250
    assert query(program, "SELECT count(*) FROM nv_search(NULL::python_docs, 'a random number', k => 5)") == 5
    succeeded(program("demo", *SMALL))
    assert not has_table(program)


def test_a_table_of_somebody_else_is_left_alone(up: Program) -> None:
    query(up, "CREATE TABLE python_docs (mine int PRIMARY KEY)")
    assert "rename it" in failed(up("demo", *SMALL))
    assert query(up, "SELECT count(mine) FROM python_docs") == 0
    query(up, "DROP TABLE python_docs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(up: Program, number: signal.Signals) -> None:
    with up.start("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert any(b"docstrings" in line for line in demo.stdout)
        demo.send_signal(number)
        said = demo.stderr.read().decode()
    assert demo.returncode == 130
    assert len(said.splitlines()) == 1, said
    assert up.status()["up"]
    assert not has_table(up)


def test_a_sidecar_that_is_gone_is_one_line(up: Program) -> None:
    """Not even a failure in the middle leaves the table."""
    with up.start("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert any(b"docstrings" in line for line in demo.stdout)
        query(up, "SELECT nv_embed.configure('unix:/nowhere')")
        said = demo.stderr.read().decode()
    assert demo.returncode == 1, said
    assert len(said.splitlines()) == 1, said
    assert not has_table(up)


def test_a_sidecar_that_serves_something_else_is_not_replaced(program: Program) -> None:
    succeeded(program("up", "--model", "fake", "--", "--dims", "256"))
    before = program.status()["sidecar"]["pid"]
    assert "leave --model out" in failed(program("demo", "--model", "minilm", *SMALL))
    succeeded(program("demo", "--model", "fake", *SMALL))
    assert program.status()["sidecar"]["pid"] == before
    assert query(program, "SELECT vector_dims(nv_embed('hello', 256))") == 256


def test_a_table_that_cannot_be_dropped_is_named(up: Program) -> None:
    refusal = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = 'lock_not_available'; END $$"
    query(up, f"CREATE FUNCTION refuse() RETURNS event_trigger {refusal}")
    query(up, "CREATE EVENT TRIGGER refuse ON sql_drop EXECUTE FUNCTION refuse()")
    try:
        said = failed(up("demo", *SMALL))
    finally:
        query(up, "DROP EVENT TRIGGER refuse")
    assert "python_docs is still there" in said
    assert "not now" in said
    assert has_table(up)
    succeeded(up("demo", *SMALL))
    assert not has_table(up)


def test_servers_that_cannot_be_stopped_are_not_called_put_away(program: Program) -> None:
    lock = program.home / "lock"
    with program.start("demo", "--model", "fake", *SMALL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
        assert any(b"docstrings" in line for line in demo.stdout)
        lock.unlink()
        lock.mkdir()
        said = demo.stdout.read().decode()
        complaints = demo.stderr.read().decode()
    lock.rmdir()
    assert demo.returncode == 1
    assert "put away" not in said
    assert str(lock) in complaints
    assert program.status()["up"]


@pytest.mark.minilm
def test_meaning_finds_more_than_full_text(program: Program) -> None:
    found = json.loads(succeeded(program("demo", "--model", "minilm", "--json", *SMALL)))
    assert found["by_meaning"]["recall_at_5"] > found["by_full_text"]["recall_at_5"] + 0.2
    assert found["by_meaning"]["recall_at_1"] > found["by_full_text"]["recall_at_1"] + 0.1
