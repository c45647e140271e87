"""
Commands against a sidecar that wants a token and speaks TLS.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from authority import Authority
from conftest import Connection
from installs import BOTH, Install, library_database
from program import Program, failed, succeeded
from servers import running_sidecar
from vectors import one

from nv_embed import tokens
from nv_embed.cluster import Cluster


@dataclass(frozen=True)
class Guarded:
    """A sidecar with a token and TLS: where it is, and what the environment must say."""

    endpoint: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Guarded]:
    place = folder / "guarded"
    place.mkdir()
    authority = Authority(place / "authority")
    server = authority.issue("server")
    (place / "token").write_text(tokens.add(place / "tokens.toml", "app") + "\n")
    options = ("--tokens", str(place / "tokens.toml"), "--tls-cert", str(server.certificate), "--tls-key", str(server.key))
    with running_sidecar(place, "--model", "fake", "--listen", "127.0.0.1:0", *options) as sidecar:
        endpoint = next(address for address in sidecar.ready["addresses"] if address.startswith("127."))
        yield Guarded(endpoint, {"NV_EMBED_TOKEN_FILE": str(place / "token"), "NV_EMBED_CA": str(authority.certificate)})


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home")


def test_embed_takes_them_from_the_environment_or_options(program: Program, guarded: Guarded) -> None:
    by_environment = succeeded(program("embed", "--endpoint", guarded.endpoint, "--dim", "384", text="hello\n", **guarded.env))
    file, ca = guarded.env.values()
    assert (
        succeeded(program("embed", "--endpoint", guarded.endpoint, "--dim", "384", "--token-file", file, "--ca", ca, text="hello\n"))
        == by_environment
    )
    assert len(json.loads(by_environment)) == 384


def test_without_them_one_line_says_what_is_missing(program: Program, guarded: Guarded, tmp_path: Path) -> None:
    embed = ("embed", "--endpoint", guarded.endpoint)
    assert "one does that expects TLS" in failed(program(*embed, text="hello\n"))
    assert "a token is missing" in failed(program(*embed, text="hello\n", NV_EMBED_CA=guarded.env["NV_EMBED_CA"]))
    stranger = Authority(tmp_path, "stranger")
    assert "not by the authority that is trusted" in failed(program(*embed, "--ca", str(stranger.certificate), text="hello\n", **guarded.env))
    assert "unencrypted" in failed(
        program("embed", "--endpoint", "sidecar:50051", text="hello\n", NV_EMBED_TOKEN_FILE=guarded.env["NV_EMBED_TOKEN_FILE"])
    )


@BOTH
def test_a_worker_embeds_with_them(
    program: Program, guarded: Guarded, connect: Callable[..., Connection], install: Install, own_database: str
) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async'); INSERT INTO docs VALUES (1, 'hello')")
    worker = ("worker", "--database-url", install.dsn(own_database), "--endpoint", guarded.endpoint, "--once", "--timeout", "1")
    without = program(*worker, NV_EMBED_CA=guarded.env["NV_EMBED_CA"])
    assert without.returncode == 1
    assert "a token is missing" in without.stderr
    succeeded(program(*worker, **guarded.env))
    assert one(owner, "SELECT count(embedding) FROM docs") == 1


def test_the_library_is_told_its_models_by_a_sidecar_that_wants_them(program: Program, guarded: Guarded, cluster: Cluster, install: Install) -> None:
    library_database(cluster, "told")
    try:
        command = (
            "install",
            "--library",
            "--database-url",
            cluster.dsn("told", user="installer", password="installer"),
            "--endpoint",
            guarded.endpoint,
        )
        assert "a token is missing" in failed(program(*command, NV_EMBED_CA=guarded.env["NV_EMBED_CA"]))
        succeeded(program(*command, **guarded.env))
        with psycopg.connect(cluster.dsn("told")) as connection:
            assert one(connection, "SELECT name FROM nv_embed.model") == "fake"
            assert one(connection, "SELECT token IS NULL FROM nv_embed.settings"), "the database itself calls nobody"
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE told WITH (FORCE)")


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--tokens", "none.toml"], 1, "cannot read none.toml: No such file"),
        (["--tls-cert", "none.pem", "--tls-key", "none.key"], 1, "cannot read none.pem: No such file"),
        (["--tls-cert", "none.pem"], 2, "--tls-cert and --tls-key go together"),
        (["--tls-client-ca", "none.pem"], 2, "--tls-client-ca needs --tls-cert and --tls-key"),
    ],
)
def test_serve_refuses_files_that_cannot_be_used_before_a_model_is_loaded(options: list[str], code: int, says: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nv_embed_sidecar", "--model", "no/such-model", "--listen", "127.0.0.1:0", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert says in line
