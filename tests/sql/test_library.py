"""
The library install: what it needs, what it refuses, and that it leaves nothing half done. On a server of its own, which has none of our roles.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Connection
from installs import OWNER, install_library, library_database
from program import Program, failed, succeeded
from psycopg import sql
from servers import Sidecar, running_cluster, shared_folder
from vectors import one

from nv_embed import __version__
from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.errors import EmbedError, Unavailable
from nv_embed.install import InstallRefused
from nv_embed.install import install as install_extension
from nv_embed.worker import Settings, Worker

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    with shared_folder() as folder, running_cluster(folder) as running:
        yield running


@pytest.fixture
def dsn(bare: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of an ordinary role, with pgvector."""
    name = f"test_{abs(hash(request.node.nodeid)):x}"
    library_database(bare, name)
    yield bare.dsn(name, user=OWNER, password=OWNER)
    with bare.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home")


@contextmanager
def connected(dsn: str) -> Iterator[Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def embedded(dsn: str, endpoint: str, schema: str = "public") -> list[Any]:
    """The whole path, by a worker that connects as the database's owner."""
    with connected(dsn) as db:
        db.execute("SET search_path = pg_catalog")
        db.execute("CREATE TABLE public.docs (id int PRIMARY KEY, body text)")
        db.execute("SELECT nv_embed.auto_embed('public.docs', '{body}', dim => 384)")
        db.execute("INSERT INTO public.docs VALUES (1, 'yeast and flour'), (2, 'a violin')")
        Worker(Settings(dsn, (endpoint,), once=True)).run()
        with Client(endpoint) as client:
            asked = str(client.embed(["violin"], dim=384, input_type="query")[0].tolist())
        return db.execute(f"SELECT (hit).id FROM {schema}.nv_search(NULL::public.docs, '{asked}', k => 1)").fetchall()


def everything(db: Connection) -> list[Any]:
    """Every row of the catalog that this database's schemas have, with the transaction that wrote it."""
    return db.execute(
        """
        WITH ours AS (SELECT oid, xmin FROM pg_namespace WHERE nspname !~ '^pg_')
        SELECT 'schema', oid, xmin::text FROM ours
        UNION ALL SELECT 'relation', oid, xmin::text FROM pg_class WHERE relnamespace IN (SELECT oid FROM ours)
        UNION ALL SELECT 'function', oid, xmin::text FROM pg_proc WHERE pronamespace IN (SELECT oid FROM ours)
        UNION ALL SELECT 'policy', oid, xmin::text FROM pg_policy
        UNION ALL SELECT 'comment', objoid, xmin::text FROM pg_description
        ORDER BY 1, 2
        """
    ).fetchall()


def test_the_command_installs_once_and_says_what_to_do_next(dsn: str, sidecar: Sidecar, program: Program) -> None:
    first = succeeded(program("install", "--library", "--database-url", dsn, "--endpoint", sidecar.address))
    assert f"nv_embed {__version__} installed, as a library" in first
    assert "model fake with 2048, 1024, 768, 512 or 384 dimensions" in first
    assert "no role nv_embed_worker" in first
    assert "nv-embed worker --database-url" in first
    with connected(dsn) as db:
        before = everything(db)
        second = succeeded(program("install", "--library", "--database-url", dsn, "--endpoint", sidecar.address))
        assert f"nv_embed {__version__} is there already" in second
        assert everything(db) == before
    assert embedded(dsn, sidecar.address) == [(2,)]


def test_a_server_without_our_roles_is_enough_for_workers_of_owners(dsn: str, sidecar: Sidecar, bare: Cluster) -> None:
    assert not install_library(dsn, sidecar.address).has_worker_role
    with connected(dsn) as db:
        assert db.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'nv\\_embed%'").fetchall() == []
        assert one(db, "SELECT nv_embed.is_worker()") is True
        assert one(db, "SELECT nv_embed.may_embed('nobody', 'nv_embed.job')") is False
    assert embedded(dsn, sidecar.address) == [(2,)]


def test_any_schemas_will_do(dsn: str, sidecar: Sidecar, bare: Cluster) -> None:
    with bare.connect(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]) as superuser:
        superuser.execute(
            'CREATE SCHEMA "Vector Types"; GRANT USAGE ON SCHEMA "Vector Types" TO PUBLIC; ALTER EXTENSION vector SET SCHEMA "Vector Types"'
        )
    with connected(dsn) as db:
        db.execute('CREATE SCHEMA "A ""I"')
    assert install_library(dsn, sidecar.address, 'A "I').schema == 'A "I'
    assert not install_library(dsn, sidecar.address).has_changed
    assert embedded(dsn, sidecar.address, '"A ""I"') == [(2,)]
    with pytest.raises(InstallRefused, match="installed in schema"):
        install_library(dsn, schema="public")


def test_a_role_that_may_make_schemas_is_enough(dsn: str, sidecar: Sidecar, bare: Cluster) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with bare.connect(name) as superuser:
        superuser.execute("DROP ROLE IF EXISTS tenant; CREATE ROLE tenant LOGIN PASSWORD 'tenant'")
        superuser.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO tenant; GRANT CREATE ON SCHEMA public TO tenant").format(sql.Identifier(name)))
    url = bare.dsn(name, user="tenant", password="tenant")
    install_library(url, sidecar.address)
    assert embedded(url, sidecar.address) == [(2,)]


def test_a_schema_that_does_not_exist_is_refused(dsn: str, program: Program) -> None:
    assert "there is no schema ai" in failed(program("install", "--library", "--database-url", dsn, "--schema", "ai"))
    assert "has an apostrophe" in failed(program("install", "--library", "--database-url", dsn, "--schema", "it's"))
    assert program("install", "--database-url", dsn, "--schema", "ai").returncode == 2


def test_an_install_that_fails_leaves_nothing(dsn: str, sidecar: Sidecar, bare: Cluster) -> None:
    with bare.connect(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]) as superuser:
        superuser.execute("CREATE FUNCTION public.nv_truncate(v vector, dim int) RETURNS vector LANGUAGE sql AS 'SELECT v'")
        before = everything(superuser)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="must be owner of function nv_truncate"):
            install_library(dsn, sidecar.address)
        assert everything(superuser) == before


def test_a_sidecar_that_does_not_answer_is_found_before_anything_is_written(dsn: str, program: Program) -> None:
    assert "no answer from the sidecar" in failed(program("install", "--library", "--database-url", dsn, "--endpoint", "127.0.0.1:1"))
    with pytest.raises(Unavailable):
        install_library(dsn, "127.0.0.1:1")
    with connected(dsn) as db:
        assert one(db, "SELECT to_regnamespace('nv_embed')") is None


def test_the_two_installs_refuse_each_other(dsn: str, sidecar: Sidecar, bare: Cluster, program: Program) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    install_library(dsn, sidecar.address)
    assert "give --library to update it" in failed(program("install", "--database-url", bare.dsn(name)))
    bare.create_database("with_extension")
    try:
        with bare.connect("with_extension") as db:
            install_extension(db)
        assert "has the extension nv_embed" in failed(program("install", "--library", "--database-url", bare.dsn("with_extension")))
    finally:
        with bare.connect() as db:
            db.execute("DROP DATABASE with_extension WITH (FORCE)")
            db.execute("DROP ROLE IF EXISTS nv_embed_admin, nv_embed_worker")


def test_a_schema_of_somebody_else_is_left_alone(dsn: str) -> None:
    with connected(dsn) as db:
        db.execute("CREATE SCHEMA nv_embed")
    with pytest.raises(InstallRefused, match="no install of ours"):
        install_library(dsn)


def test_pgvector_is_needed_and_made_where_that_is_allowed(bare: Cluster, program: Program, sidecar: Sidecar) -> None:
    bare.create_database("no_vector")
    try:
        refused = program("install", "--library", "--database-url", bare.dsn("no_vector", user=OWNER, password=OWNER))
        assert "have its administrator run CREATE EXTENSION vector" in failed(refused)
        assert "installed" in succeeded(program("install", "--library", "--database-url", bare.dsn("no_vector")))
    finally:
        with bare.connect() as db:
            db.execute("DROP DATABASE no_vector WITH (FORCE)")
            db.execute("DROP ROLE IF EXISTS nv_embed_admin, nv_embed_worker")


def test_it_can_be_removed_and_tables_keep_their_vectors(dsn: str, sidecar: Sidecar) -> None:
    install_library(dsn, sidecar.address)
    assert embedded(dsn, sidecar.address) == [(2,)]
    with connected(dsn) as db:
        db.execute("DROP SCHEMA nv_embed CASCADE; DROP FUNCTION public.nv_search, public.nv_hybrid_search")
        assert db.execute("SELECT FROM pg_proc WHERE proname LIKE 'nv\\_%'").rowcount == 0
        db.execute("INSERT INTO docs VALUES (3, 'no longer embedded')")
        assert one(db, "SELECT count(embedding) FROM docs") == 2
        assert install_library(dsn, sidecar.address).before is None
        db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
        assert db.execute("SELECT embedded, pending FROM nv_embed.status").fetchone() == (2, 1)


def test_code_that_is_not_what_it_should_be_is_made_again(dsn: str, sidecar: Sidecar) -> None:
    install_library(dsn, sidecar.address)
    with connected(dsn) as db:
        db.execute("DROP FUNCTION nv_embed.wake(); UPDATE nv_embed.installation SET version = '0.1.9', code = 'other'")
        installed = install_library(dsn)
        assert (installed.before, installed.version, installed.has_changed) == ("0.1.9", __version__, True)
        assert one(db, "SELECT nv_embed.wake()::text") == ""


def test_a_database_of_a_newer_version_is_refused(dsn: str, sidecar: Sidecar, program: Program) -> None:
    install_library(dsn, sidecar.address)
    with connected(dsn) as db:
        db.execute("UPDATE nv_embed.installation SET version = '99.0.0'")
    assert "update the program" in failed(program("install", "--library", "--database-url", dsn))


def test_somebody_who_does_not_own_it_cannot_change_it(dsn: str, sidecar: Sidecar, bare: Cluster, program: Program) -> None:
    install_library(dsn, sidecar.address)
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with bare.connect(name) as superuser:
        superuser.execute("DROP ROLE IF EXISTS stranger; CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    url = bare.dsn(name, user="stranger", password="stranger")
    assert "permission denied" in failed(program("install", "--library", "--database-url", url, "--endpoint", sidecar.address))


def test_models_are_what_the_sidecar_last_said(dsn: str, sidecar: Sidecar) -> None:
    assert install_library(dsn, sidecar.address).changed_models == 1
    assert install_library(dsn, sidecar.address).changed_models == 0
    with connected(dsn) as db:
        db.execute(
            "SELECT nv_embed.record_models(%s)", ['[{"name": "a/old", "revision": "r", "native_dim": 8, "trained_dims": [8], "declared_dims": []}]']
        )
        assert db.execute("SELECT * FROM nv_embed.model").fetchall() == [("a/old", "r", 8, [8], [], True)]
        assert one(db, "SELECT model FROM nv_embed.identify(model => 'OLD')") == "a/old"
        assert install_library(dsn, sidecar.address).changed_models == 2
        assert db.execute("SELECT name, is_default FROM nv_embed.model").fetchall() == [("fake", True)]


@pytest.mark.parametrize(("dim", "model"), [(100, None), (100, "fake"), (None, "gpt-9"), (-1, None), (0, None), (16001, None)])
def test_a_wrong_declaration_is_refused_as_by_the_sidecar_itself(dsn: str, sidecar: Sidecar, dim: int | None, model: str | None) -> None:
    install_library(dsn, sidecar.address)
    with Client(sidecar.address) as client, pytest.raises(EmbedError) as said:
        client.embed(["x"], dim=dim, model=model)
    with connected(dsn) as db, pytest.raises(psycopg.Error) as raised:
        db.execute("SELECT nv_embed.identify(%s, %s)", [dim, model])
    assert raised.value.sqlstate == said.value.sqlstate
    assert raised.value.diag.message_primary == said.value.message
    assert ("nv-embed install --library" if dim in (None, 100) else "leave dim out") in (raised.value.diag.message_hint or "")


def test_without_a_known_model_nothing_can_be_declared(dsn: str, program: Program) -> None:
    assert "run this again with --endpoint" in succeeded(program("install", "--library", "--database-url", dsn))
    with connected(dsn) as db:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        with pytest.raises(psycopg.Error, match="no model is known") as raised:
            db.execute("SELECT nv_embed.auto_embed('docs', '{body}')")
    assert raised.value.sqlstate == "58000"
    assert "nv-embed install --library --endpoint" in (raised.value.diag.message_hint or "")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT nv_embed.auto_embed('other', '{body}', mode => 'sync')",
        "SELECT nv_embed.alter_auto_embed('docs', mode => 'sync')",
        "SET nv_embed.mode = 'sync'; INSERT INTO docs VALUES (1, 'x')",
    ],
)
def test_mode_sync_is_refused_with_what_to_use_instead(dsn: str, sidecar: Sidecar, statement: str) -> None:
    install_library(dsn, sidecar.address)
    with connected(dsn) as db:
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE other (id int PRIMARY KEY, body text)")
        db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
        assert one(db, "SELECT mode FROM nv_embed.status") == "async"
        with pytest.raises(psycopg.Error, match="this database has no PL/Python, so no text can be embedded inside of it") as raised:
            db.execute(statement)
    assert raised.value.sqlstate == "0A000"
    assert "mode async and a worker" in (raised.value.diag.message_hint or "")


def test_default_privileges_do_not_open_what_is_the_owners(dsn: str, sidecar: Sidecar, bare: Cluster) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with bare.connect(name) as superuser:
        superuser.execute("DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN PASSWORD 'reader'")
        superuser.execute(f"GRANT reader TO {OWNER}")
    with connected(dsn) as db:
        db.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO reader; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO reader")
    install_library(dsn, sidecar.address)
    with connected(bare.dsn(name, user="reader", password="reader")) as reader:
        for statement in ("SELECT * FROM nv_embed.settings", "SELECT nv_embed.configure('127.0.0.1:1')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                reader.execute(statement)
        assert reader.execute("DELETE FROM nv_embed.model").rowcount == 0
        assert reader.execute("UPDATE nv_embed.embedding SET source = ''").rowcount == 0


ENV = """
import sqlalchemy
from alembic import context

engine = sqlalchemy.create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.begin() as connection:
    context.configure(connection=connection)
    context.run_migrations()
engine.dispose()
"""
REVISION = """
from alembic import op

revision, down_revision = "first", None


def upgrade():
    op.execute("CREATE TABLE own (id int)")
"""


def test_a_projects_own_alembic_runs_beside_it(dsn: str, sidecar: Sidecar, tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    (tmp_path / "versions" / "first.py").write_text(REVISION)
    config = Config()
    config.set_main_option("script_location", str(tmp_path))
    config.set_main_option("sqlalchemy.url", dsn.replace("postgresql:", "postgresql+psycopg:"))
    install_library(dsn, sidecar.address)
    command.upgrade(config, "head")
    install_library(dsn)
    with connected(dsn) as db:
        assert one(db, "SELECT version_num FROM public.alembic_version") == "first"
        assert one(db, "SELECT version_num FROM nv_embed.alembic_version") == __version__
        assert one(db, "SELECT to_regclass('public.own')") == "own"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel installs; no compiler, so without the sidecar's kernels."""
    source, installed = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in ("nv_embed", "sidecar", "sql", "migrations"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", installed, source], check=True, env={**os.environ, "CC": "false", "CXX": "false"})
    return installed


def test_an_installed_package_has_all_that_it_needs(dsn: str, sidecar: Sidecar, wheel: Path, tmp_path: Path) -> None:
    assert not (wheel / "sql").exists()
    done = subprocess.run(
        [sys.executable, "-m", "nv_embed.cli", "install", "--library", "--database-url", dsn, "--endpoint", sidecar.address],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "installed, as a library" in succeeded(done)
    assert not install_library(dsn).has_changed
    assert embedded(dsn, sidecar.address) == [(2,)]
