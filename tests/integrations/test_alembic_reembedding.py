"""
Re-embeddings in migrations: interrupted, in two steps, back again, without anybody who does the work; and all of it on paper.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError
from conftest import Connection
from installs import BOTH, EXTENSION, Install
from program import eventually
from projects import Project
from servers import Sidecar
from sqlalchemy import MetaData
from sqlalchemy.exc import DBAPIError
from tables import described, differences
from vectors import one
from workers import drain, working

pytestmark = BOTH

CREATE = """
op.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
op.create_auto_embedding("docs", "{body}", dim=384, mode="async")
op.create_embedding_index("docs")
"""
DROP = """
op.drop_embedding_index("docs")
op.drop_auto_embedding("docs")
op.drop_table("docs")
"""
WIDER, BACK = 'op.reembed("docs", dim=512, existing_dim=384)', 'op.reembed("docs", dim=384, existing_dim=512)'

STATE = "SELECT state FROM nv_embed.reembedding ORDER BY id DESC LIMIT 1"

RUN = """
import sys
from alembic import command
from alembic.config import Config

folder, url = sys.argv[1:]
config = Config()
config.set_main_option("script_location", folder)
config.attributes.update(url=url, metadata=None, options={})
command.upgrade(config, "head")
"""


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    return connect()


@pytest.fixture
def project(install: Install, own_database: str, tmp_path: Path) -> Project:
    made = Project(tmp_path / "project", install.dsn(own_database), MetaData())
    made.write(CREATE, DROP)
    return made


def fill(db: Connection, project: Project, sidecar: Sidecar, rows: int = 40) -> None:
    db.execute("INSERT INTO docs SELECT n, 'body ' || n FROM generate_series(1, %s) AS n", [rows])
    drain(project.dsn, sidecar.address)


def widths(db: Connection) -> Any:
    return one(db, "SELECT array_agg(DISTINCT vector_dims(embedding)) FROM docs")


def test_a_migration_that_was_killed_goes_on(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.upgrade()
    fill(db, project, sidecar)
    project.write(WIDER.replace("dim=512", "dim=512, rows_per_s=20"), BACK)
    script = project.folder / "run.py"
    script.write_text(RUN)
    with working(project.dsn, sidecar.address):
        running = subprocess.Popen([sys.executable, str(script), str(project.folder), project.url], stdin=subprocess.DEVNULL, env=os.environ)
        progress = "SELECT coalesce(sum(embedded), 0) FROM nv_embed.reembedding_status WHERE state = 'backfilling'"
        assert eventually(lambda: 0 < one(db, progress) < 40)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert (one(db, "SELECT version_num FROM alembic_version"), one(db, STATE), widths(db)) == ("r1", "backfilling", [384])
        project.upgrade()
    assert (one(db, STATE), one(db, "SELECT count(*) FROM nv_embed.reembedding"), widths(db)) == ("live", 1, [512])
    assert db.execute("SELECT dim, is_valid FROM nv_embed.vector_indexes('docs')").fetchall() == [(512, True)]


def test_one_that_was_killed_after_the_cut_over_has_nothing_left_to_do(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.write(WIDER, BACK)
    project.upgrade()
    command.stamp(project.config(), "r1")
    project.upgrade()
    assert (one(db, STATE), one(db, "SELECT count(*) FROM nv_embed.reembedding")) == ("live", 1)


def test_back_it_goes_at_once_or_once_it_is_finished_by_making_the_vectors_anew(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.upgrade()
    fill(db, project, sidecar)
    project.write(WIDER, BACK)
    with working(project.dsn, sidecar.address):
        project.upgrade()
    db.execute("INSERT INTO docs VALUES (100, 'written since')")
    drain(project.dsn, sidecar.address)
    project.downgrade("r1")
    assert (one(db, STATE), widths(db), one(db, "SELECT count(embedding) FROM docs")) == ("rolled_back", [384], 41)
    project.write('op.finish_reembedding("docs")')
    with working(project.dsn, sidecar.address):
        project.upgrade()
        assert (one(db, STATE), widths(db)) == ("finished", [512])
        project.downgrade("r1")
    assert widths(db) == [384]


def test_it_is_begun_in_one_revision_and_cut_over_in_another(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.upgrade()
    fill(db, project, sidecar)
    project.write('op.reembed("docs", dim=512, existing_dim=384, wait=False)', BACK)
    project.write('op.cut_over_reembedding("docs")', 'op.roll_back_reembedding("docs")')
    project.upgrade("r2")
    assert (one(db, STATE), widths(db)) == ("backfilling", [384])
    with working(project.dsn, sidecar.address):
        project.upgrade()
        assert (one(db, STATE), widths(db)) == ("live", [512])
        project.downgrade("r2")
        assert widths(db) == [384]
        project.upgrade()
        assert (one(db, STATE), widths(db)) == ("live", [512])
        project.downgrade("r1")
    assert widths(db) == [384]
    assert one(db, "SELECT count(*) FROM nv_embed.reembedding WHERE ended_at IS NULL") == 0


def test_nothing_to_cut_over_is_an_error(project: Project, db: Connection) -> None:
    project.write('op.cut_over_reembedding("docs")', 'op.roll_back_reembedding("docs")')
    with pytest.raises(CommandError, match="no re-embedding of docs is under way"):
        project.upgrade()


def test_one_that_goes_elsewhere_is_not_overridden(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.upgrade()
    fill(db, project, sidecar, 5)
    db.execute("SELECT nv_embed.reembed('docs', dim => 768)")
    project.write(WIDER, BACK)
    with pytest.raises(DBAPIError, match="goes elsewhere"):
        project.upgrade()


def test_it_is_not_ready_under_what_it_is_to_find(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.upgrade()
    fill(db, project, sidecar)
    project.write(WIDER.replace("dim=512", "dim=512, min_overlap=0.1"), BACK)
    project.write('op.reembed("docs", dim=768, existing_dim=512, min_overlap=2)', WIDER)
    with working(project.dsn, sidecar.address):
        project.upgrade("r2")
        assert one(db, "SELECT overlap >= 0.1 FROM nv_embed.reembedding_status")
        with pytest.raises(DBAPIError, match="min_overlap is 2"):
            project.upgrade()


def test_it_says_that_no_worker_runs(project: Project, db: Connection, sidecar: Sidecar, caplog: pytest.LogCaptureFixture) -> None:
    project.upgrade()
    fill(db, project, sidecar, 5)
    db.execute("DELETE FROM nv_embed.worker")
    project.write(WIDER, BACK)
    said = "no worker runs: start nv-embed worker"

    class Helper(logging.Handler):
        """Somebody who reads the log, and starts one."""

        def emit(self, record: logging.LogRecord) -> None:
            if said in record.getMessage():
                drain(project.dsn, sidecar.address)

    log = logging.getLogger("alembic.nv_embed")
    helper = Helper(logging.WARNING)
    log.addHandler(helper)
    try:
        with caplog.at_level(logging.INFO, "alembic"):
            project.upgrade()
    finally:
        log.removeHandler(helper)
    assert said in caplog.text
    assert "from fake, 384 dimensions, halfvec to fake, 512 dimensions, halfvec" in caplog.text
    assert "CREATE INDEX CONCURRENTLY" in caplog.text


def test_what_is_printed_for_psql_does_the_same(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.write(WIDER, BACK)
    project.write('op.reembed("docs", model="fake", dim=768, existing_dim=512, wait=False)', 'op.reembed("docs", dim=512, existing_dim=768)')
    project.write('op.cut_over_reembedding("docs")', 'op.roll_back_reembedding("docs")')
    project.write('op.alter_auto_embedding("docs", truncate="END", existing_truncate="NONE")', 'op.alter_auto_embedding("docs", truncate="NONE")')
    project.write('op.finish_reembedding("docs")')
    with working(project.dsn, sidecar.address):
        before = described(db)
        project.upgrade()
        after = described(db)
        project.downgrade()
        db.execute("DROP TABLE IF EXISTS alembic_version")
        project.psql(project.printed(command.upgrade, "head"))
        assert differences(after, described(db)) == []
        project.psql(project.printed(command.downgrade, "head:base"))
        assert differences(before, described(db)) == []
        db.execute("DROP TABLE IF EXISTS alembic_version")
        project.psql(project.printed(command.upgrade, "r1"))
        fill(db, project, sidecar)
        project.psql(project.printed(command.upgrade, "r1:head"))
        assert differences(after, described(db)) == []
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
    assert widths(db) == [768]


ASYNC_ENV = """
import asyncio

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine

import nv_embed.alembic

given = context.config.attributes


def migrate(connection):
    connection.exec_driver_sql("SET maintenance_work_mem = '33MB'")
    connection.commit()
    context.configure(connection=connection, target_metadata=given["metadata"], transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


async def run():
    engine = create_async_engine(given["url"], poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(run())
"""


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_a_migration_may_run_over_an_asynchronous_driver(project: Project, db: Connection, sidecar: Sidecar, driver: str) -> None:
    project.driver = driver
    (project.folder / "env.py").write_text(ASYNC_ENV)
    project.upgrade()
    fill(db, project, sidecar, 5)
    project.write(WIDER, BACK)
    with working(project.dsn, sidecar.address):
        project.upgrade()
        assert (one(db, STATE), widths(db)) == ("live", [512])
        project.downgrade()
    assert one(db, "SELECT to_regclass('docs') IS NULL")


@EXTENSION  # whose owner may become another role
def test_what_waits_is_the_migrations_role_with_its_settings(project: Project, db: Connection) -> None:
    db.execute("CREATE SCHEMA shelf")
    db.execute("GRANT ALL ON SCHEMA shelf TO app")
    env = project.folder / "env.py"
    roles = 'connection.exec_driver_sql("SET ROLE app"); connection.exec_driver_sql("SET search_path = shelf, public"); connection.commit()'
    env.write_text(env.read_text().replace("        context.configure(connection", f"        {roles}\n        context.configure(connection"))
    project.options["version_table_schema"] = "shelf"
    project.write(WIDER, BACK)
    project.upgrade()
    assert one(db, "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'shelf.docs'::regclass") == "app"
    assert db.execute("SELECT dim, is_valid FROM nv_embed.vector_indexes('shelf.docs')").fetchall() == [(512, True)]
    project.downgrade()
