"""
The command line without servers: usage, start-up, failures in one line, lines as they are read.
"""

import io
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from nv_embed import __version__
from nv_embed.cli.embed import LINES_AT_ONCE, Intake, Line, parse_line
from nv_embed.cli.failure import Failure, explain
from nv_embed.cli.index import Lines
from nv_embed.cli.screen import Screen
from nv_embed.cluster import Cluster, ClusterFailed
from nv_embed.errors import TABLE
from nv_embed.home import NotSetUp
from nv_embed.indexes import Progress
from nv_embed.limits import MAX_TEXT_BYTES

COMMANDS = ("up", "down", "dsn", "status", "doctor", "demo", "embed", "serve", "install", "index")


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "nv_embed.cli", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert (said.returncode, said.stderr) == (0, "")
    assert [command for command in COMMANDS if f"\n  {command} " in said.stdout] == list(COMMANDS)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "serve"])
def test_every_command_has_help(command: str) -> None:
    said = run(command, "--help")
    assert said.returncode == 0
    assert f"nv-embed {command}" in said.stdout


def test_version() -> None:
    assert run("--version").stdout == f"nv-embed {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("up", "nonsense"),
        ("up", "--nonsense"),
        ("embed", "--input-type", "nonsense"),
        ("embed", "--dim", "x"),
        ("install",),
        ("dsn", "extra"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    said = run(*arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert "Usage:" in said.stderr
    assert "Traceback" not in said.stderr


def test_help_loads_neither_grpc_nor_psycopg_nor_rich() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import sys, nv_embed.cli; print(sorted({'grpc', 'psycopg', 'rich', 'orjson', 'numpy', 'torch'} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", [*TABLE, Failure, NotSetUp, ClusterFailed])
def test_an_expected_failure_is_one_line(kind: type[Exception]) -> None:
    line = explain(kind("it broke\nin two lines"))
    assert line is not None
    assert "it broke in two lines" in line


def test_a_connection_that_fails_is_one_line() -> None:
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect("postgresql://nobody@127.0.0.1:1/none", connect_timeout=2)
    line = explain(caught.value)
    assert line is not None
    assert "\n" not in line
    assert "127.0.0.1" in line


def test_a_fault_of_our_own_is_not_explained_away() -> None:
    assert explain(ValueError("a bug")) is None


def test_a_missing_file_is_named() -> None:
    assert explain(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"


def test_a_cluster_without_data_says_so(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data")
    assert not cluster.is_running()
    assert not cluster.stop()
    with pytest.raises(ClusterFailed, match="nv-embed up"):
        cluster.dsn()


def test_a_line_loses_its_end_and_nothing_else() -> None:
    assert [parse_line(1, raw).text for raw in (b"a \n", b"a\r\n", b"\n", b" \tb", "ü\n".encode())] == ["a ", "a", "", " \tb", "ü"]


def test_a_line_that_is_not_utf8_is_named_by_its_number() -> None:
    with pytest.raises(Failure, match=r"line 7 is not UTF-8, from its byte 3 on"):
        parse_line(7, b"ab\xff\n")


def test_a_line_over_the_limit_is_named_by_its_number() -> None:
    assert parse_line(1, b"x" * MAX_TEXT_BYTES + b"\n").size == MAX_TEXT_BYTES + 1
    with pytest.raises(Failure, match="line 7 has more than"):
        parse_line(7, b"x" * (MAX_TEXT_BYTES + 1))


def test_lines_before_a_bad_one_are_taken_first() -> None:
    intake = Intake()
    intake.put(Line(1, "a", 2))
    intake.end(Failure("line 2 is bad"))
    assert intake.take() == [Line(1, "a", 2)]
    with pytest.raises(Failure, match="line 2 is bad"):
        intake.take()


def test_a_reader_waits_when_enough_is_read() -> None:
    intake, wanted = Intake(), 5 * LINES_AT_ONCE
    reader = threading.Thread(target=lambda: ([intake.put(Line(number, "x", 2)) for number in range(wanted)], intake.end()))
    reader.start()
    taken = []
    while lines := intake.take():
        assert len(lines) <= LINES_AT_ONCE
        taken += [line.number for line in lines]
    reader.join()
    assert taken == list(range(wanted))


def test_a_build_is_told_by_phases_and_tenths() -> None:
    screen = Screen()
    screen.file = io.StringIO()
    lines = Lines(screen)
    lines.begin(2, 3, "CREATE INDEX i ON t")
    lines.progress(Progress(None, None, None, None, None))
    lines.progress(Progress("initializing", None, None, None, None))
    for done in range(1001):
        lines.progress(Progress("loading tuples", "blocks", done, 1000, None))
    said = screen.file.getvalue().splitlines()
    assert said[:4] == [
        "2/3 CREATE INDEX i ON t",
        "  initializing",
        "  loading tuples, 0 % of 1,000 blocks",
        "  loading tuples, 10 % of 1,000 blocks",
    ]
    assert (len(said), said[-1]) == (13, "  loading tuples, 100 % of 1,000 blocks")
