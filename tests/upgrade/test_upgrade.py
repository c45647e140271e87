"""
A database of any released version, updated: its catalog is that of a fresh install, and what was declared in it goes on.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from catalog import described, differences
from conftest import Connection
from installs import OWNER, Install, library_database
from program import Program, succeeded
from psycopg import sql
from servers import Sidecar
from vectors import cosine, one, parsed

from nv_embed import __version__
from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.home import pg_bin
from nv_embed.worker import Settings, Worker

EXTENSION = Path(__file__).resolve().parents[2] / "extension"
RELEASED = sorted(file.stem.removeprefix("nv_embed--") for file in (EXTENSION / "released").glob("*.sql") if file.stem.count("--") == 1)


@pytest.fixture(params=RELEASED)
def old(cluster: Cluster, sidecar: Sidecar, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A database with a released version and tables declared by it: with few rows, many, partitions, without its column, and gone."""
    cluster.create_database("old")
    with cluster.connect("old") as db:
        db.execute(sql.SQL("CREATE EXTENSION nv_embed VERSION {} CASCADE").format(sql.Literal(request.param)))
        db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
        db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        db.execute("CREATE TABLE many (id int PRIMARY KEY, body text)")
        db.execute('CREATE TABLE "Odd ""Name" (id int PRIMARY KEY, body text)')
        db.execute("CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
        db.execute("CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        db.execute("CREATE TABLE broken (id int PRIMARY KEY, body text); CREATE TABLE gone (id int PRIMARY KEY, body text)")
        for table in ("docs", "many", '"Odd ""Name"', "parts", "broken", "gone"):
            db.execute("SELECT nv_embed.auto_embed(%s::regclass, '{body}', dim => 384)", [table])
        db.execute("INSERT INTO docs VALUES (1, 'yeast'), (2, 'violin'), (3, ' ')")
        db.execute("INSERT INTO many SELECT n, 'body ' || n FROM generate_series(1, 1200) AS n")
        db.execute("""INSERT INTO "Odd ""Name" VALUES (1, 'odd'); INSERT INTO parts VALUES (1, 'part')""")
        db.execute("ALTER TABLE broken DROP COLUMN embedding; DROP TABLE gone")
        yield db
    with cluster.connect() as connection:
        connection.execute("DROP DATABASE old WITH (FORCE)")


@pytest.fixture
def upgraded(old: Connection) -> Connection:
    old.execute("ALTER EXTENSION nv_embed UPDATE")
    return old


def status(db: Connection, relation: str) -> tuple[object, ...] | None:
    return db.execute(
        "SELECT rows, embedded, pending, failed, blank, backfilling FROM nv_embed.status WHERE relation = %s::regclass", [relation]
    ).fetchone()


def test_an_upgraded_catalog_is_that_of_a_fresh_install(upgraded: Connection, db: Connection) -> None:
    assert one(upgraded, "SELECT extversion FROM pg_extension WHERE extname = 'nv_embed'") == __version__
    assert differences(described(upgraded), described(db)) == []


def test_what_was_declared_is_counted_and_goes_on_in_mode_sync(upgraded: Connection, client: Client) -> None:
    assert status(upgraded, "docs") == (3, 2, 0, 0, 1, False)
    assert status(upgraded, '"Odd ""Name"') == (1, 1, 0, 0, 0, False)
    assert status(upgraded, "parts") == (1, 1, 0, 0, 0, False)
    assert status(upgraded, "many") == (None, None, 0, 0, None, True)
    assert status(upgraded, "broken") == (None, None, 0, 0, None, True)
    assert one(upgraded, "SELECT count(*) FROM nv_embed.embedding") == 5
    upgraded.execute(
        "INSERT INTO docs VALUES (4, 'flour'); UPDATE docs SET body = 'a violin and its bow' WHERE id = 2; DELETE FROM docs WHERE id = 1"
    )
    assert status(upgraded, "docs") == (3, 2, 0, 0, 1, False)
    stored = upgraded.execute("SELECT body, embedding::text FROM docs WHERE body <> ' ' ORDER BY id").fetchall()
    assert [cosine(parsed(vector), client.embed([body], dim=384)[0]) > 0.9999 for body, vector in stored] == [True, True]
    assert one(upgraded, "SELECT (hit).id FROM nv_search(NULL::docs, 'violin', k => 1)") == 2
    upgraded.execute("INSERT INTO parts VALUES (2, 'another'); DELETE FROM parts WHERE id = 1")
    assert status(upgraded, "parts") == (1, 1, 0, 0, 0, False)


def test_what_was_declared_can_be_switched_to_a_worker(upgraded: Connection, cluster: Cluster, sidecar: Sidecar) -> None:
    upgraded.execute("SELECT nv_embed.alter_auto_embed('many', mode => 'async')")
    upgraded.execute("INSERT INTO many VALUES (2000, 'late'); UPDATE many SET body = 'changed' WHERE id = 7")
    Worker(Settings(cluster.dsn("old"), (sidecar.address,), once=True)).run()
    assert status(upgraded, "many") == (1201, 1201, 0, 0, 0, False)
    assert one(upgraded, "SELECT nv_embed.wait('many', timeout => '0 s')")


def test_a_table_that_was_broken_is_so_still_and_can_be_mended(upgraded: Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn, match="holds its vectors and is gone"):
        upgraded.execute("INSERT INTO broken VALUES (1, 'x')")
    upgraded.execute("ALTER TABLE broken ADD COLUMN embedding halfvec(384); INSERT INTO broken VALUES (1, 'x')")
    assert one(upgraded, "SELECT nv_embed.refresh('broken')") == 0
    assert status(upgraded, "broken") == (1, 1, 0, 0, 0, False)


@pytest.mark.parametrize("version", RELEASED)
def test_functions_stay_in_the_schema_that_was_chosen(cluster: Cluster, sidecar: Sidecar, version: str) -> None:
    cluster.create_database("elsewhere")
    try:
        with cluster.connect("elsewhere") as db:
            db.execute('CREATE SCHEMA ai; CREATE SCHEMA "Vector Types"; CREATE EXTENSION vector SCHEMA "Vector Types"; CREATE EXTENSION plpython3u')
            db.execute(sql.SQL("CREATE EXTENSION nv_embed SCHEMA ai VERSION {}").format(sql.Literal(version)))
            db.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
            db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
            db.execute("ALTER EXTENSION nv_embed UPDATE; INSERT INTO docs VALUES (1, 'x')")
            assert db.execute("SELECT (hit).id FROM ai.nv_search(NULL::docs, 'x')").fetchall() == [(1,)]
            strays = "SELECT proname FROM pg_proc WHERE proname LIKE 'nv\\_%' AND pronamespace <> 'ai'::regnamespace"
            assert db.execute(strays).fetchall() == []
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE elsewhere WITH (FORCE)")


def test_without_a_worker_refresh_counts_what_was_there(upgraded: Connection) -> None:
    assert one(upgraded, "SELECT nv_embed.refresh('many')") == 0
    assert status(upgraded, "many") == (1200, 1200, 0, 0, 0, False)


def test_the_install_command_updates(old: Connection, cluster: Cluster, tmp_path: Path) -> None:
    before = one(old, "SELECT extversion FROM pg_extension WHERE extname = 'nv_embed'")
    said = succeeded(Program(tmp_path / "home")("install", "--database-url", cluster.dsn("old")))
    assert f"nv_embed {__version__} updated from {before}" in said


DIFFERENT = [
    "ALTER TABLE nv_embed.embedding ADD COLUMN x int",
    "ALTER TABLE nv_embed.embedding ALTER COLUMN source DROP NOT NULL",
    "ALTER TABLE nv_embed.generation ALTER COLUMN state SET DEFAULT 'x'",
    "ALTER TABLE nv_embed.settings ALTER COLUMN timeout_s TYPE float8",
    "ALTER TABLE nv_embed.job SET (fillfactor = 51)",
    "ALTER TABLE nv_embed.job DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE nv_embed.worker SET LOGGED",
    "ALTER TABLE nv_embed.embedding DROP CONSTRAINT embedding_mode_check",
    "ALTER TABLE nv_embed.generation DROP CONSTRAINT generation_embedding_fkey, ADD FOREIGN KEY (embedding) REFERENCES nv_embed.embedding",
    "DROP INDEX nv_embed.job_retry; CREATE INDEX job_retry ON nv_embed.job (generation, retry_at)",
    "ALTER SEQUENCE nv_embed.job_id_seq CACHE 7",
    "ALTER POLICY readable ON nv_embed.worker USING (false)",
    "GRANT TRUNCATE ON nv_embed.job TO PUBLIC",
    "GRANT UPDATE (source) ON nv_embed.embedding TO PUBLIC",
    "GRANT EXECUTE ON FUNCTION nv_embed.configure(text, real, text, text, text, text, boolean) TO PUBLIC",
    "REVOKE USAGE ON SCHEMA nv_embed FROM PUBLIC",
    "COMMENT ON COLUMN nv_embed.job.stale IS 'x'",
    "COMMENT ON INDEX nv_embed.job_retry IS 'x'",
    "COMMENT ON FUNCTION nv_embed.wake() IS NULL",
    "ALTER FUNCTION nv_embed.wake() COST 7",
    "ALTER FUNCTION nv_embed.wake() SECURITY DEFINER",
    "ALTER FUNCTION nv_embed.wake() RESET search_path",
    "ALTER FUNCTION nv_truncate(vector, int) PARALLEL UNSAFE",
    "CREATE OR REPLACE FUNCTION nv_embed.wake() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS 'BEGIN END'",
    "CREATE FUNCTION nv_embed.more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER VIEW nv_embed.status RESET (security_invoker)",
    "CREATE TRIGGER t AFTER INSERT ON nv_embed.job EXECUTE FUNCTION nv_embed.queue_nothing()",
    "ALTER EXTENSION nv_embed DROP FUNCTION nv_embed.wake()",
    "UPDATE pg_extension SET extcondition[1] = 'WHERE false' WHERE extname = 'nv_embed'",
    "UPDATE pg_extension SET extconfig = extconfig[2:], extcondition = extcondition[2:] WHERE extname = 'nv_embed'",
    "DELETE FROM pg_init_privs WHERE objoid = 'nv_embed.job'::regclass",
]


@pytest.mark.parametrize("statement", DIFFERENT)
def test_the_comparison_sees(db: Connection, statement: str) -> None:
    before = described(db)
    assert differences(before, described(db)) == []
    db.execute(statement)
    assert differences(before, described(db)) != []


def defined_for(kind: str) -> set[str]:
    """Names that the files for this install alone define."""
    folder = EXTENSION.parent / "sql"
    order = [line.split() for line in (folder / "order").read_text().splitlines()]
    text = "\n".join((folder / name).read_text() for name, *only in order if only == [kind])
    return set(re.findall(r"^CREATE (?:OR REPLACE )?(?:FUNCTION|TABLE|DOMAIN) ([\w@]+\.\w+)", text.replace("@extschema@", "public"), re.MULTILINE))


def test_both_installs_have_one_schema(make_install: Callable[[str], Install]) -> None:
    """But for what `sql/order` leaves to one of them, or has each of them define."""
    found = {}
    for kind in ("extension", "library"):
        with make_install(kind).cluster.connect(make_install(kind).rollback) as db:
            found[kind] = {
                name: text.replace('"public".', "public.")
                for name, text in described(db).items()
                if not name.startswith(("member", "extension", "dumped", "initial"))
            }
    extension, library = defined_for("extension"), defined_for("library") | {"nv_embed.alembic_version"}
    allowed = {"only in the first: ": extension, "only in the second: ": library, "": extension & library}
    apart = differences(found["extension"], found["library"])
    for line in apart:
        said = next(words for words in allowed if line.startswith(words))
        assert re.match(rf"\w+ ({'|'.join(map(re.escape, allowed[said]))})(\W|_pk|$)", line.removeprefix(said)), line
    assert {"only in the first: function nv_embed.health()", "only in the second: relation nv_embed.model"} <= set(apart)


def test_what_is_released_never_changes() -> None:
    folder = EXTENSION / "released"
    checksums = {name: checksum for checksum, name in (line.split() for line in (folder / "checksums").read_text().splitlines())}
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in checksums} == checksums
    assert {file.name for file in folder.glob("*.sql")} <= checksums.keys()
    assert RELEASED[0] == "0.1.0"


def test_a_released_version_is_what_is_built_of_it() -> None:
    for file in (EXTENSION / "released").glob(f"*--{__version__}.sql"):
        assert (EXTENSION / file.name).read_text() == file.read_text(), "raise nv_embed.__version__ before changing the SQL of a released version"


def make(checkout: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--directory", checkout / "extension", *arguments, f"PG_CONFIG={pg_bin('pg_config')}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_release_keeps_what_the_next_version_begins_with(tmp_path: Path, cluster: Cluster, sidecar: Sidecar) -> None:
    for name in ("extension", "sql", "migrations", "nv_embed"):
        shutil.copytree(EXTENSION.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", f"*--{__version__}.sql"))
    shutil.copytree(EXTENSION / "upgrades", tmp_path / "extension" / "upgrades", dirs_exist_ok=True)
    assert make(tmp_path, "freeze").returncode == 0
    released = tmp_path / "extension" / "released"
    assert (released / f"nv_embed--{__version__}.sql").read_text() == (EXTENSION / f"nv_embed--{__version__}.sql").read_text()
    assert "never changes" in make(tmp_path, "freeze").stderr

    (tmp_path / "sql" / "schema" / "job.sql").write_text("this is of the next version\n")
    (tmp_path / "nv_embed" / "__init__.py").write_text('__version__ = "99.0.0"\n')
    (tmp_path / "extension" / "upgrades" / f"{__version__}--99.0.0.sql").write_text("-- by hand\n-- @include functions\n")
    assert make(tmp_path, f"nv_embed--{__version__}--99.0.0.sql").returncode == 0
    script = (tmp_path / "extension" / f"nv_embed--{__version__}--99.0.0.sql").read_text()
    assert "-- by hand" in script
    assert "CREATE OR REPLACE FUNCTION nv_embed.wake()" in script
    assert "next version" not in script

    versions = tmp_path / "migrations" / "versions"
    first = (versions / "v0_2_0.py").read_text()
    (versions / "v99_0_0.py").write_text(
        first.replace("down_revision = None", 'down_revision = "0.2.0"').replace('\nrevision = "0.2.0"', '\nrevision = "99.0.0"')
    )
    (versions / "99.0.0.sql").write_text("CREATE TABLE nv_embed.next_version (id int)")
    library_database(cluster, "next_version")
    url = cluster.dsn("next_version", user=OWNER, password=OWNER)
    try:
        command = [sys.executable, "-m", "nv_embed.cli", "install", "--library", "--database-url", url, "--endpoint", sidecar.address]
        said = succeeded(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False))
        assert "nv_embed 99.0.0 installed" in said
        with cluster.connect("next_version") as db:
            assert one(db, "SELECT version_num FROM nv_embed.alembic_version") == "99.0.0"
            assert one(db, "SELECT to_regclass('nv_embed.next_version')") == "nv_embed.next_version"
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE next_version WITH (FORCE)")
