"""
`nv-embed embed` and `nv-embed serve`, against a real sidecar.
"""

import json
import math
import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from program import TIMEOUT_S, Done, Program, command, failed, succeeded
from servers import Sidecar, running_sidecar

from nv_embed.client import Client


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The program where no private servers run."""
    return Program(tmp_path / "home")


def embed(program: Program, sidecar: Sidecar, text: str, *arguments: str) -> Done:
    return program("embed", "--endpoint", sidecar.address, *arguments, text=text)


def rows(done: Done) -> list[Any]:
    return [json.loads(line) for line in succeeded(done).splitlines()]


def test_a_line_is_a_json_array_as_the_client_gives_it(program: Program, sidecar: Sidecar, client: Client) -> None:
    found = rows(embed(program, sidecar, "the first dynamo\nwas built by\n", "--dim", "384"))
    expected = client.embed(["the first dynamo", "was built by"], dim=384)
    assert [len(row) for row in found] == [384, 384]
    for row, vector in zip(found, expected, strict=True):
        assert row == pytest.approx(vector.tolist(), abs=1e-7)
    assert math.hypot(*found[0]) == pytest.approx(1, abs=1e-5)


def test_a_blank_line_is_null_and_keeps_its_place(program: Program, sidecar: Sidecar) -> None:
    found = rows(embed(program, sidecar, "\none\n  \ntwo\n\n"))
    assert [row is None for row in found] == [True, False, True, False, True]


def test_no_lines_are_no_vectors(program: Program, sidecar: Sidecar) -> None:
    assert rows(embed(program, sidecar, "")) == []


def test_a_last_line_without_an_end_counts(program: Program, sidecar: Sidecar) -> None:
    assert len(rows(embed(program, sidecar, "one\ntwo"))) == 2


def test_a_closed_stdin_is_one_line(program: Program, sidecar: Sidecar) -> None:
    closed = 'exec "$@" <&-'
    arguments = command("embed", "--endpoint", sidecar.address)
    done = subprocess.run(["bash", "-c", closed, "bash", *arguments], env=program.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert "stdin is closed" in failed(done)


def test_many_lines_keep_their_order(program: Program, sidecar: Sidecar, client: Client) -> None:
    found = rows(embed(program, sidecar, "".join(f"number {number}\n" for number in range(6000)), "--dim", "384"))
    assert len(found) == 6000
    for number in (0, 1, 255, 256, 2047, 2048, 4096, 5999):
        assert found[number] == pytest.approx(client.embed([f"number {number}"], dim=384)[0].tolist(), abs=1e-6)


def test_a_query_is_not_a_passage(program: Program, sidecar: Sidecar, client: Client) -> None:
    found = rows(embed(program, sidecar, "dynamo\n", "--input-type", "query"))
    assert found[0] == pytest.approx(client.embed(["dynamo"], input_type="query")[0].tolist(), abs=1e-7)


def test_a_line_is_answered_before_the_next_one_is_there(program: Program, sidecar: Sidecar) -> None:
    asking = program.start("embed", "--endpoint", sidecar.address, "--dim", "384", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert asking.stdin is not None
    assert asking.stdout is not None
    with asking.stdin as lines, asking.stdout as answers:
        for _ in range(2):
            lines.write(b"hello\n")
            lines.flush()
            assert len(json.loads(answers.readline())) == 384
    assert asking.wait(timeout=60) == 0


def test_a_reader_that_has_enough_ends_it_quietly(sidecar: Sidecar) -> None:
    piped = " ".join(command("embed", "--endpoint", sidecar.address, "--dim", "384"))
    done = subprocess.run(
        ["bash", "-c", f"yes 'some text' | {piped} | head -n 2; echo ${{PIPESTATUS[1]}}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[2] == "0"


def test_input_that_comes_faster_than_answers_is_not_hoarded(program: Program, folder: Path) -> None:
    with running_sidecar(folder, "--model", "fake", "--fake-delay-s", "5", name="slow.sock") as slow:
        asking = program.start("embed", "--endpoint", slow.address, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert asking.stdin is not None
        with asking.stdin as lines:
            os.set_blocking(lines.fileno(), False)
            taken = fill(lines.fileno())
            asking.kill()
            asking.wait()
    assert 1024 * 1024 < taken < 32 * 1024 * 1024


def fill(pipe: int) -> int:
    """Write lines until none is taken for three seconds; how many bytes were."""
    written, page = 0, (b"x" * 1000 + b"\n") * 64
    while written < 100 * 1024 * 1024 and select.select([], [pipe], [], 3)[1]:
        written += os.write(pipe, page)
    return written


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dim", "385"), "385"),
        (("--dim", "0"), "0 is not a number of dimensions"),
        (("--model", "nonsense"), "nonsense"),
    ],
)
def test_a_refusal_is_one_line(program: Program, sidecar: Sidecar, arguments: tuple[str, ...], said: str) -> None:
    assert said in failed(embed(program, sidecar, "hello\n", *arguments))


def test_a_text_over_the_models_limit_is_named_by_its_line(program: Program, sidecar: Sidecar) -> None:
    text = "fine\n\nfine too\n" + "word " * 9000 + "\n"
    assert "line 4" in failed(embed(program, sidecar, text, "--dim", "384"))
    assert len(rows(embed(program, sidecar, text, "--dim", "384", "--truncate", "end"))) == 4


def test_input_that_is_not_utf8_is_named_by_its_line(program: Program, sidecar: Sidecar) -> None:
    done = subprocess.run(
        command("embed", "--endpoint", sidecar.address), env=program.env, input=b"good\n\xff\xfe\n", capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.decode().startswith("nv-embed: line 2 is not UTF-8")
    assert len(done.stdout.splitlines()) == 1


def test_a_failure_does_not_wait_for_more_input(program: Program, sidecar: Sidecar) -> None:
    asking = program.start(
        "embed", "--endpoint", sidecar.address, "--dim", "385", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asking.stdin is not None
    asking.stdin.write(b"hello\n")
    asking.stdin.flush()
    assert asking.wait(timeout=60) == 1
    _, complained = asking.communicate()
    assert complained.decode().count("\n") == 1


def test_no_sidecar_is_one_line(program: Program) -> None:
    assert "127.0.0.1:1" in failed(program("embed", "--endpoint", "127.0.0.1:1", text="hello\n"))
    assert "nv-embed up" in failed(program("embed", text="hello\n"))


@pytest.fixture
def served(program: Program, tmp_path: Path) -> "Iterator[tuple[subprocess.Popen[bytes], bytes]]":
    serving = program.start("serve", "--model", "fake", "--listen", "127.0.0.1:0", stdout=subprocess.PIPE)
    assert serving.stdout is not None
    with serving.stdout as said:
        yield serving, said.readline()
        serving.kill()
        serving.wait()


def test_serve_is_the_sidecar_and_ends_on_sigterm(served: "tuple[subprocess.Popen[bytes], bytes]", program: Program) -> None:
    serving, line = served
    address = line.decode().rpartition(" on ")[2].strip()
    assert len(rows(program("embed", "--endpoint", address, "--dim", "384", text="hello\n"))[0]) == 384
    serving.terminate()
    assert serving.wait(timeout=60) == 0


def test_serve_hands_every_option_to_the_sidecar(program: Program) -> None:
    assert "--listen" in succeeded(program("serve", "--help"))
    done = program("serve", "--nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
