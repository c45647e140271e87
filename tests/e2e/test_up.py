"""
`nv-embed up`, `down`, `dsn` and `status`, on servers of their own.
"""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from program import Program, eventually, failed, program_with_own_home, succeeded

from nv_embed.client import Client


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with program_with_own_home() as own:
        yield own


@pytest.fixture
def up(program: Program) -> Program:
    """The program with its servers up."""
    succeeded(program("up", "--model", "fake"))
    return program


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("Z", "X")


def ask(program: Program, query: str) -> object:
    with psycopg.connect(succeeded(program("dsn")).strip(), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return None if row is None else row[0]


def test_from_nothing_to_a_vector(program: Program) -> None:
    said = succeeded(program("up", "--model", "fake"))
    assert "psql" in said
    assert ask(program, "SELECT vector_dims(nv_embed('hello', 384))") == 384
    assert ask(program, "SELECT serving FROM nv_embed.health()") is True


def test_psql_takes_the_dsn(up: Program) -> None:
    said = subprocess.run(["psql", succeeded(up("dsn")).strip(), "-Atc", "SELECT 1"], capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("1\n", "")


def test_status_names_dsn_endpoint_and_model(up: Program) -> None:
    found = json.loads(succeeded(up("status", "--json")))
    assert found["dsn"] == succeeded(up("dsn")).strip()
    assert found["model"] == "fake"
    assert found["up"] is True
    with Client(found["endpoint"]) as client:
        assert [model.name for model in client.list_models()] == ["fake"]
    assert found["postgres"]["extensions"].keys() == {"nv_embed", "vector"}
    assert found["postgres"]["data_dir"].startswith(str(up.home))


def test_status_is_a_table_for_people(up: Program) -> None:
    said = succeeded(up("status"))
    found = up.status()
    for part in ("PostgreSQL", "sidecar", str(found["postgres"]["pid"]), found["endpoint"]):
        assert part in said


def test_a_second_up_leaves_everything_as_it_is(up: Program) -> None:
    before = up.status()
    assert succeeded(up("up")).count("already") == 2
    after = up.status()
    assert (after["postgres"]["pid"], after["sidecar"]["pid"], after["dsn"]) == (before["postgres"]["pid"], before["sidecar"]["pid"], before["dsn"])


def test_servers_listen_on_this_machine_only(up: Program) -> None:
    assert ask(up, "SHOW listen_addresses") == "127.0.0.1"
    assert up.status()["endpoint"].startswith("127.0.0.1:")


def test_postgres_takes_no_one_without_the_password(up: Program) -> None:
    dsn = succeeded(up("dsn")).strip()
    login = dsn.split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(dsn.replace(login, f"{login.rpartition(':')[0]}:wrong"))


def test_a_killed_sidecar_alone_is_replaced(up: Program) -> None:
    before = up.status()
    kill(before["sidecar"]["pid"])
    assert up("status").returncode == 1
    assert up.status()["sidecar"]["running"] is False
    succeeded(up("up", "--model", "fake"))
    after = up.status()
    assert after["sidecar"]["pid"] != before["sidecar"]["pid"]
    assert after["postgres"]["pid"] == before["postgres"]["pid"]
    assert ask(up, "SELECT vector_dims(nv_embed('hello'))") == 2048


def test_a_sidecar_that_hangs_is_replaced(up: Program) -> None:
    hung = up.status()["sidecar"]["pid"]
    os.kill(hung, signal.SIGSTOP)
    assert up.status()["sidecar"]["healthy"] is False
    succeeded(up("up"))
    assert is_gone(hung)
    assert up.status()["model"] == "fake"


def test_data_and_url_survive_a_crash_of_everything(up: Program) -> None:
    with psycopg.connect(succeeded(up("dsn")).strip(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    before = up.status()
    kill(before["postgres"]["pid"])
    kill(before["sidecar"]["pid"])
    assert failed(up("dsn")) == "nv-embed: nothing runs here yet: run `nv-embed up`"
    succeeded(up("up", "--model", "fake"))
    assert up.status()["dsn"] == before["dsn"]
    assert ask(up, "SELECT value FROM kept") == 42
    assert ask(up, "SELECT vector_dims(nv_embed('hello'))") == 2048


def test_down_leaves_no_process_and_may_be_repeated(up: Program) -> None:
    with psycopg.connect(succeeded(up("dsn")).strip()):
        assert succeeded(up("down")).endswith("Stopped PostgreSQL and the sidecar.\n")
    assert eventually(lambda: up.processes() == []), up.processes()
    assert succeeded(up("down")) == "Nothing runs.\n"
    assert failed(up("dsn")) == "nv-embed: nothing runs here yet: run `nv-embed up`"
    found = up("status", "--json")
    assert found.returncode == 1
    assert {name: json.loads(found.stdout)[name] for name in ("up", "dsn", "endpoint", "model")} == {
        "up": False,
        "dsn": None,
        "endpoint": None,
        "model": None,
    }


def test_the_url_is_the_same_after_down_and_up(up: Program) -> None:
    before = succeeded(up("dsn"))
    succeeded(up("down"))
    succeeded(up("up", "--model", "fake"))
    assert succeeded(up("dsn")) == before


def test_a_taken_port_is_given_up_for_another(up: Program) -> None:
    port = up.status()["postgres"]["port"]
    succeeded(up("down"))
    with socket.create_server(("127.0.0.1", port)):
        succeeded(up("up", "--model", "fake"))
        assert up.status()["postgres"]["port"] != port
        assert ask(up, "SELECT 1") == 1


def served(up: Program) -> tuple[str, int]:
    """What the first model that is served puts in front of a query, and the longest text it reads."""
    with Client(up.status()["endpoint"]) as client:
        model = client.list_models()[0]
    return model.query_prompt, model.max_tokens


def test_options_behind_two_dashes_are_the_sidecars(up: Program) -> None:
    succeeded(up("up", "--", "--query-prompt", "ask: ", "--max-tokens", "77"))
    assert served(up) == ("ask: ", 77)
    told = up.status()["sidecar"]["pid"]
    for again in ((), ("--model", "fake"), ("--", "--query-prompt", "ask: ", "--max-tokens", "77")):
        assert "already serves" in succeeded(up("up", *again))
    assert up.status()["sidecar"]["pid"] == told
    os.kill(told, signal.SIGSTOP)
    succeeded(up("up"))
    assert served(up) == ("ask: ", 77), "a sidecar that is replaced was told the same"
    succeeded(up("up", "--", "--max-tokens", "78"))
    assert served(up) == ("query: ", 78)


def test_the_environment_tells_a_sidecar_that_is_started(up: Program) -> None:
    succeeded(up("down"))
    succeeded(up("up", "--model", "fake", NV_EMBED_SIDECAR_QUERY_PROMPT="ask: "))
    assert served(up) == ("ask: ", 8192)
    succeeded(up("down"))


def test_options_that_the_sidecar_does_not_take_are_one_line(up: Program) -> None:
    assert "--precision" in failed(up("up", "--", "--precision", "nonsense"))
    assert "--nonsense" in failed(up("up", "--", "--nonsense"))
    for ours in (("--ready-file", "x"), ("--ready-file=x",)):
        said = up("up", "--", *ours)
        assert (said.returncode, "--ready-file" in said.stderr) == (2, True)


def test_two_ups_at_once_start_one_of_each(up: Program) -> None:
    succeeded(up("down"))
    done: list[str] = []
    threads = [threading.Thread(target=lambda: done.append(succeeded(up("up", "--model", "fake")))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert len([line for line in up.processes() if "nv_embed_sidecar" in line]) == 1
    assert len([line for line in up.processes() if "/bin/postgres -D" in line]) == 1


def test_a_model_that_does_not_exist_is_one_line_and_no_process(up: Program) -> None:
    line = failed(up("up", "--model", "no/such-model"))
    assert "no/such-model" in line
    assert not [line for line in up.processes() if "nv_embed_sidecar" in line]
    assert up.status()["postgres"]["running"] is True


def test_up_that_is_interrupted_leaves_no_half_started_sidecar(up: Program) -> None:
    succeeded(up("down"))
    starting = up.start("up", "--model", "fake", stdout=subprocess.PIPE)
    assert starting.stdout is not None
    with starting.stdout as said:
        while b"Starting a sidecar" not in said.readline():
            assert starting.poll() is None
        starting.send_signal(signal.SIGINT)
        starting.wait(timeout=60)
    found = up.status()["sidecar"]
    assert found["running"] or not [line for line in up.processes() if "nv_embed_sidecar" in line]
    succeeded(up("up", "--model", "fake"))


def test_up_goes_on_when_nobody_reads_what_it_says(up: Program) -> None:
    succeeded(up("down"))
    starting = up.start("up", "--model", "fake", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert starting.stdout is not None
    assert starting.stderr is not None
    starting.stdout.close()
    with starting.stderr as errors:
        complained = errors.read()
    assert (starting.wait(timeout=60), complained) == (0, b"")
    assert up.status()["up"] is True


def test_a_data_directory_left_half_made_is_made_anew(up: Program) -> None:
    succeeded(up("down", "--delete-data"))
    assert not (up.home / "data").exists()
    (up.home / "data.new/data").mkdir(parents=True)
    (up.home / "data.new/data/PG_VERSION").write_text("15\n")
    succeeded(up("up", "--model", "fake"))
    assert ask(up, "SELECT vector_dims(nv_embed('hello'))") == 2048


def test_what_is_not_ours_is_not_overwritten(program: Program) -> None:
    succeeded(program("down", "--delete-data"))
    (program.home / "data").mkdir()
    (program.home / "data/precious").touch()
    try:
        assert "not a PostgreSQL data directory" in failed(program("up", "--model", "fake"))
        assert (program.home / "data/precious").exists()
    finally:
        (program.home / "data/precious").unlink()
        (program.home / "data").rmdir()


def test_a_server_without_the_extension_says_make_setup(program: Program, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = str(tmp_path_factory.mktemp("pgroot"))
    assert failed(program("up", "--model", "fake", NV_EMBED_PGROOT=empty)).endswith("run `make setup`")


@pytest.mark.minilm
def test_another_model_replaces_the_sidecar_only(up: Program) -> None:
    before = up.status()
    succeeded(up("up", "--model", "minilm"))
    after = up.status()
    assert "MiniLM" in after["model"]
    assert after["sidecar"]["pid"] != before["sidecar"]["pid"]
    assert after["postgres"]["pid"] == before["postgres"]["pid"]
    assert ask(up, "SELECT vector_dims(nv_embed('hello'))") == 384
