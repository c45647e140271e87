"""
pg_dump and restore: declarations, vectors and triggers come along; of the extension, the endpoint does not.
"""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from chunks import OVERLAP, TOKENS, embed, in_step
from conftest import Connection
from installs import BOTH, Install, install_library, library_database
from psycopg import sql
from servers import Sidecar
from vectors import one

from nv_embed.client import Client
from nv_embed.cluster import Cluster
from nv_embed.home import pg_bin


def dump_and_restore(dsn: str, restored: str, file: Path, *options: str) -> str:
    """What the dump says. A database's owner who is no superuser leaves extensions to whoever is."""
    environment = {**os.environ, "PGCONNECT_TIMEOUT": "10"}
    subprocess.run([pg_bin("pg_dump"), "--file", file, *options, dsn], check=True, env=environment)
    script = file.read_text()
    if options:
        script = re.sub(r"^(CREATE|COMMENT ON) SCHEMA public.*;$", "", script, flags=re.MULTILINE)
        file.write_text(script)
    subprocess.run([pg_bin("psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--file", file, restored], check=True, stdout=subprocess.DEVNULL)
    return script


@pytest.fixture
def restored_name(own_database: str, cluster: Cluster) -> Iterator[str]:
    yield f"{own_database}_restored"
    with cluster.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(f"{own_database}_restored")))


def restore(cluster: Cluster, install: Install, name: str, restored_name: str, folder: Path) -> None:
    options = []
    if install.kind == "library":
        library_database(cluster, restored_name)
        options = ["--schema=public", "--schema=nv_embed"]
    else:
        cluster.create_database(restored_name)
    dump_and_restore(install.dsn(name), install.dsn(restored_name), folder / "dump.sql", *options)


@BOTH
def test_a_restored_queue_goes_on_where_the_dumped_one_was(
    connect: Callable[..., Connection], cluster: Cluster, install: Install, own_database: str, restored_name: str, tmp_path: Path, client: Client
) -> None:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE other (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async')")
    db.execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384, mode => 'async')")
    db.execute("INSERT INTO docs VALUES (1, 'a', NULL), (2, 'b', NULL), (4, 'd', %s)", [str(client.embed(["d"], dim=384)[0].tolist())])
    restore(cluster, install, own_database, restored_name, tmp_path)
    with psycopg.connect(install.dsn(restored_name), autocommit=True) as restored:
        restored.execute("INSERT INTO docs VALUES (3, 'c'); DELETE FROM docs WHERE id = 1")
        assert restored.execute("SELECT key FROM nv_embed.job ORDER BY id").fetchall() == [("{2}",), ("{3}",)]
        assert restored.execute("SELECT rows, pending FROM nv_embed.status WHERE relation = 'docs'::regclass").fetchone() == (3, 2)
        found = restored.execute("SELECT (hit).id FROM nv_search(NULL::docs, %s::vector)", [str(client.embed(["d"], dim=384)[0].tolist())])
        assert found.fetchall() == [(4,)]
        if install.kind == "extension":
            restored.execute("SELECT nv_embed.configure(%s)", [one(db, "SELECT endpoint FROM nv_embed.settings")])
        restored.execute("CREATE TABLE new (id int PRIMARY KEY, body text)")
        taken = {key for (key,) in restored.execute("SELECT id FROM nv_embed.embedding").fetchall()}
        assert one(restored, "SELECT nv_embed.auto_embed('new', '{body}', dim => 384, mode => 'async')") not in taken
        if install.kind == "library":
            assert not install_library(install.dsn(restored_name)).has_changed


def test_a_restored_database_embeds_once_it_is_told_where_the_sidecar_is(
    connect: Callable[..., Connection], cluster: Cluster, install: Install, own_database: str, restored_name: str, sidecar: Sidecar, tmp_path: Path
) -> None:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'yeast'), (2, 'violin')")
    cluster.create_database(restored_name)
    assert sidecar.address not in dump_and_restore(cluster.dsn(own_database), cluster.dsn(restored_name), tmp_path / "dump.sql")
    with cluster.connect(restored_name) as restored:
        with pytest.raises(psycopg.Error, match="no sidecar is configured"):
            restored.execute("INSERT INTO docs VALUES (3, 'flour')")
        restored.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
        restored.execute("INSERT INTO docs VALUES (3, 'flour')")
        assert one(restored, "SELECT count(embedding) FROM docs") == 3
        assert one(restored, "SELECT (hit).id FROM nv_search(NULL::docs, 'violin', k => 1)") == 2


@BOTH
def test_a_restored_chunk_table_follows_its_rows(
    connect: Callable[..., Connection], cluster: Cluster, install: Install, own_database: str, restored_name: str, tmp_path: Path, client: Client
) -> None:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, tenant text DEFAULT 'app')")
    db.execute(
        "SELECT nv_embed.auto_embed('docs', '{title}: {body}', dim => 384, mode => 'async', chunk_tokens => %s, chunk_overlap => %s)",
        [TOKENS, OVERLAP],
    )
    db.execute("GRANT SELECT ON docs TO app; ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (tenant = current_user)")
    db.execute("INSERT INTO docs SELECT n, 't', repeat('word' || n || ' ', 50) FROM generate_series(1, 4) AS n")
    db.execute("UPDATE docs SET tenant = 'other' WHERE id = 4")
    embed(db, client)
    db.execute("INSERT INTO docs VALUES (5, 't', 'waits')")
    restore(cluster, install, own_database, restored_name, tmp_path)
    with psycopg.connect(install.dsn(restored_name), autocommit=True) as restored:
        restored.execute("DELETE FROM docs WHERE id = 1; UPDATE docs SET body = 'new words' WHERE id = 2")
        embed(restored, client)
        in_step(restored, client)
        assert restored.execute("SELECT rows, embedded, pending, chunks::text FROM nv_embed.status").fetchone() == (4, 4, 0, "docs_embedding_chunk")
    with psycopg.connect(install.dsn(restored_name, "app")) as app:
        assert app.execute("SELECT DISTINCT id FROM docs_embedding_chunk ORDER BY id").fetchall() == [(2,), (3,), (5,)]


def test_what_is_restricted_to_users_is_so_in_a_restored_database(
    connect: Callable[..., Connection], cluster: Cluster, install: Install, own_database: str, restored_name: str, tmp_path: Path
) -> None:
    connect().execute("SELECT nv_embed.restrict_to_users()")
    restore(cluster, install, own_database, restored_name, tmp_path)
    with cluster.connect(restored_name) as restored:
        sending = "SELECT f::text FROM nv_embed.sending_functions() AS f WHERE has_function_privilege('public', f, 'EXECUTE')"
        assert restored.execute(sending).fetchall() == []
