"""
The roles nv_embed_admin, nv_embed_worker and nv_embed_user: each may do what docs/security.md grants it, and nothing else.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, Install
from psycopg import sql
from vectors import one

from nv_embed.cluster import Cluster

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
ROLES = ("nv_embed_admin", "nv_embed_worker", "nv_embed_user")

GRANTS = """
    SELECT r.rolname, pg_describe_object(d.classid, d.objid, d.objsubid)
    FROM pg_shdepend AS d JOIN pg_roles AS r ON r.oid = d.refobjid
    WHERE d.refclassid = 'pg_authid'::regclass AND d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND r.rolname = ANY (%s)
"""

DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def member(cluster: Cluster, install: Install, own_database: str, connect: Callable[..., Connection]) -> Iterator[Callable[[str], Connection]]:
    """Connections of roles that may log in, and belong to one of ours and nothing else."""
    names: list[str] = []

    def make(role: str) -> Connection:
        name = f"{role}_member"
        with cluster.connect(own_database) as superuser:
            superuser.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(sql.Identifier(name), sql.Literal(name), sql.Identifier(role))
            )
        names.append(name)
        return connect(name)

    yield make
    with cluster.connect(own_database) as superuser:
        for name in names:
            superuser.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(sql.Identifier(name)))


def listed() -> set[tuple[str, str]]:
    """Role and function of each row of the page's table of grants."""
    table = PAGE.read_text().partition("## Roles of the database")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", table, flags=re.MULTILINE)
    return {(role, function) for role, functions in rows for function in re.findall(r"`([\w.]+)\(", functions)}


def granted(db: Connection) -> set[tuple[str, str]]:
    found = db.execute(GRANTS, [list(ROLES)]).fetchall()
    names = {(role, re.sub(r"^function (public\.)?", "", what).partition("(")[0]) for role, what in found}
    assert all(what.startswith("function ") for _, what in found)
    return names


def test_each_role_holds_the_grants_that_the_page_lists_and_no_others(db: Connection) -> None:
    assert granted(db) == listed()
    assert len(listed()) > 10


@BOTH
def test_no_role_is_more_than_a_group(db: Connection) -> None:
    attributes = db.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)"
        " AND NOT (rolsuper OR rolcanlogin OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)",
        [list(ROLES)],
    ).fetchall()
    assert {name for (name,) in attributes} == set(ROLES)
    assert one(db, "SELECT count(*) FROM pg_auth_members AS m JOIN pg_roles AS r ON r.oid = m.member WHERE r.rolname = ANY (%s)", [list(ROLES)]) == 0


def test_every_function_that_can_reach_the_sidecar_is_one_that_users_are_needed_for(db: Connection) -> None:
    python = "SELECT p.oid::regprocedure::text FROM pg_proc AS p JOIN pg_language AS l ON l.oid = p.prolang WHERE l.lanname = 'plpython3u'"
    reaching = {name for (name,) in db.execute(python).fetchall()} - {"nv_embed.start_session()", "nv_embed.models()", "nv_embed.health()"}
    sending = {name for (name,) in db.execute("SELECT nv_embed.sending_functions()::text").fetchall()}
    assert reaching == sending


def test_everybody_may_have_texts_sent_until_that_is_restricted_and_again_after(connect: Callable[..., Connection]) -> None:
    owner, app = connect(), connect("app")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    owner.execute("GRANT SELECT, INSERT, UPDATE ON docs TO app")
    sending = (
        "SELECT nv_embed('hello')",
        "SELECT nv_embed(ARRAY['hello'])",
        "SELECT nv_embed_query('hello')",
        "SELECT nv_embed_query('hello', 'docs'::regclass)",
        "SELECT nv_count_tokens('hello')",
        "SELECT nv_chunk('hello', 10)",
        "SELECT nv_search(NULL::docs, 'hello')",
        "INSERT INTO docs SELECT coalesce(max(id), 0) + 1, 'hello' FROM docs",
    )
    for statement in sending:
        app.execute(statement)
    owner.execute("SELECT nv_embed.restrict_to_users()")
    for statement in sending:
        with pytest.raises(DENIED):
            app.execute(statement)
    assert one(app, "SELECT (hit).body FROM nv_search(NULL::docs, (SELECT embedding::vector FROM docs)) LIMIT 1") == "hello"
    owner.execute("SELECT nv_embed.restrict_to_users(false)")
    for statement in sending:
        app.execute(statement)


def test_a_user_may_have_texts_sent_and_may_not_administer(connect: Callable[..., Connection], member: Callable[[str], Connection]) -> None:
    owner = connect()
    owner.execute("SELECT nv_embed.restrict_to_users()")
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async'); INSERT INTO docs VALUES (1, 'hello')")
    user = member("nv_embed_user")
    assert one(user, "SELECT vector_dims(nv_embed('hello', 384))") == 384
    for statement in (
        "SELECT nv_embed.configure('127.0.0.1:1')",
        "SELECT nv_embed.restrict_to_users(false)",
        "SELECT token FROM nv_embed.settings",
        "SELECT nv_embed.start_session()",
        "SELECT * FROM docs",
    ):
        with pytest.raises(DENIED):
            user.execute(statement)
    assert user.execute("SELECT * FROM nv_embed.job").fetchall() == []
    assert user.execute("UPDATE nv_embed.job SET leased_until = now()").rowcount == 0
    assert one(owner, "SELECT count(*) FROM nv_embed.job") == 1


@BOTH
def test_an_admin_may_configure_and_not_read_what_was_configured_nor_rows(
    connect: Callable[..., Connection], member: Callable[[str], Connection]
) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async'); INSERT INTO docs VALUES (1, 'hello')")
    admin = member("nv_embed_admin")
    endpoint = one(owner, "SELECT endpoint FROM nv_embed.settings")
    admin.execute("SELECT nv_embed.configure(%s, 30)", [endpoint])
    for statement in (
        "SELECT token FROM nv_embed.settings",
        "SELECT * FROM docs",
        "SELECT nv_embed.drop_auto_embed('docs')",
        "ALTER TABLE docs ADD x int",
    ):
        with pytest.raises(DENIED):
            admin.execute(statement)
    assert admin.execute("SELECT * FROM nv_embed.job").fetchall() == []


@BOTH
def test_a_worker_sees_the_queue_and_may_not_configure_nor_read_rows(connect: Callable[..., Connection], member: Callable[[str], Connection]) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async'); INSERT INTO docs VALUES (1, 'hello')")
    worker = member("nv_embed_worker")
    assert one(worker, "SELECT count(*) FROM nv_embed.job") == 1
    for statement in (
        "SELECT nv_embed.configure('127.0.0.1:1')",
        "SELECT token FROM nv_embed.settings",
        "SELECT * FROM docs",
        "UPDATE docs SET body = ''",
    ):
        with pytest.raises(DENIED):
            worker.execute(statement)


def test_who_is_no_admin_cannot_restrict_or_open(connect: Callable[..., Connection], member: Callable[[str], Connection]) -> None:
    with pytest.raises(DENIED):
        connect("app").execute("SELECT nv_embed.restrict_to_users()")
    admin = member("nv_embed_admin")
    admin.execute("SELECT nv_embed.restrict_to_users()")
    with pytest.raises(DENIED):
        admin.execute("SELECT nv_embed('hello')")
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        admin.execute("SELECT nv_embed.restrict_to_users(NULL)")


def test_roles_outlive_the_extension_and_can_be_dropped_by_hand(connect: Callable[..., Connection]) -> None:
    owner = connect()
    owner.execute("DROP EXTENSION nv_embed")
    assert one(owner, "SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", [list(ROLES)]) == 3
    assert granted(owner) == set()
