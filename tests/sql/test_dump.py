"""
pg_dump and restore: declarations, vectors and triggers come along; the endpoint does not.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from psycopg import sql
from servers import Sidecar
from vectors import one

from nv_embed.cluster import Cluster
from nv_embed.home import pg_bin


def test_a_restored_database_goes_on_where_the_dumped_one_was(
    connect: Callable[..., Connection], cluster: Cluster, own_database: str, sidecar: Sidecar, tmp_path: Path
) -> None:
    db = connect()
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE other (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    db.execute("SELECT nv_embed.auto_embed('other', '{body}', dim => 384)")
    db.execute("INSERT INTO docs VALUES (1, 'yeast'), (2, 'violin')")
    db.execute("CREATE TABLE later (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('later', '{body}', dim => 384, mode => 'async'); INSERT INTO later VALUES (1, 'a'), (2, 'b')")
    dumped = tmp_path / "dump.sql"
    subprocess.run([pg_bin("pg_dump"), "--file", dumped, cluster.dsn(own_database)], check=True, env={**os.environ, "PGCONNECT_TIMEOUT": "10"})
    assert sidecar.address not in dumped.read_text()

    name = f"{own_database}_restored"
    cluster.create_database(name)
    try:
        subprocess.run(
            [pg_bin("psql"), "--quiet", "--set", "ON_ERROR_STOP=1", "--file", dumped, cluster.dsn(name)], check=True, stdout=subprocess.DEVNULL
        )
        with cluster.connect(name) as restored:
            with pytest.raises(psycopg.Error, match="no sidecar is configured"):
                restored.execute("INSERT INTO docs VALUES (3, 'flour')")
            restored.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
            restored.execute("INSERT INTO docs VALUES (3, 'flour')")
            assert one(restored, "SELECT count(embedding) FROM docs") == 3
            assert one(restored, "SELECT (hit).id FROM nv_search(NULL::docs, 'violin', k => 1)") == 2
            restored.execute("INSERT INTO later VALUES (3, 'c'); DELETE FROM later WHERE id = 1")
            assert restored.execute("SELECT key FROM nv_embed.job ORDER BY id").fetchall() == [(["2"],), (["3"],)]
            assert restored.execute("SELECT rows, pending FROM nv_embed.status WHERE relation = 'later'::regclass").fetchone() == (2, 2)
            restored.execute("CREATE TABLE new (id int PRIMARY KEY, body text)")
            taken = {key for (key,) in restored.execute("SELECT id FROM nv_embed.embedding").fetchall()}
            assert one(restored, "SELECT nv_embed.auto_embed('new', '{body}', dim => 384)") not in taken
    finally:
        with cluster.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
