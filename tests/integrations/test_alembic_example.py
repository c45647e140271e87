"""
The worked example in `migrations/example`, by Alembic's own program: up, down and up again on real texts.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, Install
from servers import Sidecar
from tables import described, differences
from vectors import one
from workers import working

from nv_embed.client import Client

pytestmark = [BOTH, pytest.mark.slow]

CONFIG = Path(__file__).resolve().parents[2] / "migrations" / "example" / "alembic.ini"


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    return connect()


def alembic(dsn: str, *arguments: str) -> tuple[str, str]:
    """What it prints, and what it logs."""
    env = {**os.environ, "DATABASE_URL": dsn}
    command = [sys.executable, "-m", "alembic.config", "-c", str(CONFIG), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def found(db: Connection, client: Client, question: str, dim: int) -> str:
    vector = str(client.embed([question], dim=dim, input_type="query")[0].tolist())
    return str(one(db, "SELECT (hit).name FROM nv_search(NULL::manual_topic, %s::vector, k => 1)", [vector]))


def test_the_example_goes_up_and_down_and_up_again(dsn: str, db: Connection, sidecar: Sidecar, client: Client) -> None:
    before = described(db)
    with working(dsn, sidecar.address):
        assert "re-embedding manual_topic" in alembic(dsn, "upgrade", "head")[1]
        assert one(db, "SELECT nv_embed.wait('manual_topic', timeout => '60 s')")
        after, topics = described(db), one(db, "SELECT count(*) FROM manual_topic")
        assert one(db, "SELECT count(embedding) FROM manual_topic") == topics > 50
        text = one(db, "SELECT name || ': ' || body FROM manual_topic WHERE name = 'continue'")
        assert found(db, client, text, 512) == "continue"
        assert "No new upgrade operations detected" in alembic(dsn, "check")[0]
        alembic(dsn, "downgrade", "r3")
        assert found(db, client, text, 768) == "continue"
        alembic(dsn, "downgrade", "base")
        assert differences(before, described(db)) == []
        alembic(dsn, "upgrade", "head")
        assert one(db, "SELECT nv_embed.wait('manual_topic', timeout => '60 s')")
    assert differences(after, described(db)) == []
    assert one(db, "SELECT count(embedding) FROM manual_topic") == topics
    assert "No new upgrade operations detected" in alembic(dsn, "check")[0]


def test_what_the_example_prints_runs_in_psql(dsn: str, db: Connection, sidecar: Sidecar, tmp_path: Path) -> None:
    script = tmp_path / "upgrade.sql"
    with working(dsn, sidecar.address):
        alembic(dsn, "upgrade", "head")
        after = described(db)
        alembic(dsn, "downgrade", "r1")
        script.write_text(alembic(dsn, "upgrade", "r1:head", "--sql")[0])
        subprocess.run(["psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-f", str(script), dsn], timeout=120, check=True, capture_output=True)
    assert differences(after, described(db)) == []
    with psycopg.connect(dsn) as connection:
        assert one(connection, "SELECT version_num FROM example_version") == "r5"
