"""
nv_embed itself by a project's migrations: there, and gone again.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from catalog import described, differences
from conftest import Connection
from installs import OWNER, install_library, library_database
from projects import Project
from psycopg import sql
from servers import Sidecar
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.exc import DBAPIError
from vectors import one

from nv_embed.cluster import Cluster
from nv_embed.sqlalchemy import Embedded

LIBRARY = "nv_embed_by_migration"

SAME_SETTINGS = """
op.execute('''DO $$ BEGIN ASSERT current_setting('search_path') = '"$user", public' AND current_setting('check_function_bodies') = 'on'; END $$''')
"""

ROWS = """
op.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
op.create_auto_embedding("docs", "{body}", dim=384)
"""


@pytest.fixture
def dsn(cluster: Cluster) -> Iterator[str]:
    """A database of an ordinary role's, with pgvector and without nv_embed."""
    library_database(cluster, LIBRARY)
    yield cluster.dsn(LIBRARY, user=OWNER, password=OWNER)
    with cluster.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(LIBRARY)))


@pytest.fixture
def db(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def project(dsn: str, tmp_path: Path) -> Project:
    return Project(tmp_path / "project", dsn, MetaData())


def library(endpoint: str) -> tuple[str, str]:
    return f'op.install_nv_embed_library(endpoint="{endpoint}")', "op.uninstall_nv_embed_library()"


def test_the_library_is_what_the_program_installs(project: Project, dsn: str, db: Connection, sidecar: Sidecar) -> None:
    install_library(dsn, sidecar.address)
    expected = described(db)
    db.execute("DROP SCHEMA nv_embed CASCADE")
    for (name,) in db.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'nv\\_%' AND pronamespace = 'public'::regnamespace"):
        db.execute(f"DROP FUNCTION {name}".encode())
    up, down = library(sidecar.address)
    project.write(f"{up}\n{SAME_SETTINGS}", down)
    project.write(ROWS, 'op.drop_auto_embedding("docs")\nop.drop_table("docs")')
    project.upgrade()
    assert differences(expected, described(db)) == []
    project.upgrade()
    project.downgrade()
    assert one(db, "SELECT to_regnamespace('nv_embed') IS NULL AND NOT EXISTS (SELECT FROM pg_proc WHERE proname LIKE 'nv\\_%')")
    db.execute("DROP TABLE IF EXISTS alembic_version")
    project.psql(project.printed(command.upgrade, "head"))
    assert differences(expected, described(db)) == []
    assert install_library(dsn).has_changed is False
    project.psql(project.printed(command.downgrade, "head:base"))
    assert one(db, "SELECT to_regnamespace('nv_embed') IS NULL AND NOT EXISTS (SELECT FROM pg_proc WHERE proname LIKE 'nv\\_%')")


def test_the_library_is_not_removed_from_under_tables(project: Project, db: Connection, sidecar: Sidecar) -> None:
    project.write(*library(sidecar.address))
    project.upgrade()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    with pytest.raises(DBAPIError, match="tables are embedded still: docs"):
        project.downgrade()


def test_what_the_library_refuses_is_said_in_a_line(project: Project, db: Connection, sidecar: Sidecar) -> None:
    db.execute("CREATE SCHEMA nv_embed")
    project.write(*library(sidecar.address))
    with pytest.raises(CommandError, match="no install of ours"):
        project.upgrade()


def test_a_database_without_it_is_compared_too(
    project: Project, dsn: str, db: Connection, sidecar: Sidecar, caplog: pytest.LogCaptureFixture
) -> None:
    embedding = Column("embedding", Embedded("{body}", dim=384))
    Table("docs", project.metadata, Column("id", Integer, primary_key=True), Column("body", Text), embedding)
    with caplog.at_level("INFO", "alembic"):
        assert "op.create_auto_embedding('docs', '{body}', dim=384)" in project.autogenerate()
    assert "an earlier revision needs op.create_extension_nv_embed() or op.install_nv_embed_library()" in caplog.text
    install_library(dsn, sidecar.address)
    project.upgrade()
    assert project.diff() == []


def test_the_extension_comes_and_goes(cluster: Cluster, tmp_path: Path, sidecar: Sidecar) -> None:
    cluster.create_database("extension_by_migration")
    try:
        project = Project(tmp_path / "project", cluster.dsn("extension_by_migration"), MetaData())
        configure = f"op.execute(\"SELECT nv_embed.configure('{sidecar.address}')\")"
        project.write("op.create_extension_nv_embed()\n" + configure, "op.drop_extension_nv_embed()")
        project.write(ROWS, 'op.drop_auto_embedding("docs")\nop.drop_table("docs")')
        with cluster.connect("extension_by_migration") as db:
            project.upgrade()
            assert one(db, "SELECT dim FROM nv_embed.status") == 384
            project.write("op.drop_extension_nv_embed()")
            with pytest.raises(DBAPIError, match="other objects depend on it"):
                project.upgrade()
            (project.folder / "versions" / "r3.py").unlink()
            project.downgrade()
            assert one(db, "SELECT count(*) FROM pg_extension WHERE extname = 'nv_embed'") == 0
            db.execute("DROP TABLE IF EXISTS alembic_version")
            project.psql(project.printed(command.upgrade, "head"))
            assert one(db, "SELECT dim FROM nv_embed.status") == 384
            project.psql(project.printed(command.downgrade, "head:base"))
            assert one(db, "SELECT to_regnamespace('nv_embed') IS NULL")
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE extension_by_migration WITH (FORCE)")
