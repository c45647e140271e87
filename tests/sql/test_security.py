"""
What an ordinary role may do, and what it may not.
"""

from collections.abc import Callable
from contextlib import suppress

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION, LIBRARY
from vectors import one

from nv_embed.cluster import Cluster


@pytest.fixture
def app(connect: Callable[..., Connection]) -> Connection:
    return connect("app")


def test_an_ordinary_role_can_embed_search_and_declare(app: Connection) -> None:
    assert one(app, "SELECT vector_dims(nv_embed('hello', 384))") == 384
    assert one(app, "SELECT nv_count_tokens('hello')") > 0
    assert one(app, "SELECT serving FROM nv_embed.health()") is True
    app.execute("CREATE TABLE own (id int PRIMARY KEY, body text)")
    app.execute("SELECT nv_embed.auto_embed('own', '{body}', dim => 384)")
    app.execute("INSERT INTO own VALUES (1, 'hello')")
    assert app.execute("SELECT (hit).id FROM nv_search(NULL::own, 'hello')").fetchall() == [(1,)]
    app.execute("SELECT nv_embed.drop_auto_embed('own')")


@BOTH
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM nv_embed.settings",
        "UPDATE nv_embed.settings SET endpoint = '127.0.0.1:1'",
        "DELETE FROM nv_embed.settings",
        "SELECT nv_embed.configure('127.0.0.1:1')",
        "COPY nv_embed.settings TO STDOUT",
        "CREATE FUNCTION nv_embed.evil() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION nv_truncate(vector, int) SET search_path = public",
        "TRUNCATE nv_embed.embedding CASCADE",
    ],
)
def test_an_ordinary_role_cannot_read_or_change_where_texts_go(app: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT nv_embed.start_session()",
        "CREATE FUNCTION evil() RETURNS int LANGUAGE plpython3u AS 'return 1'",
        "ALTER FUNCTION nv_embed(text, int, text, text, text) SET search_path = public",
    ],
)
def test_an_ordinary_role_cannot_run_python_of_its_own(app: Connection, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement)


@LIBRARY
@pytest.mark.parametrize("table", ["installation", "model", "alembic_version"])
def test_what_the_library_keeps_is_read_by_all_and_written_by_its_owner(app: Connection, table: str) -> None:
    assert app.execute(f"SELECT * FROM nv_embed.{table}").rowcount == 1
    for statement in ("DELETE FROM nv_embed.{}", "INSERT INTO nv_embed.{} DEFAULT VALUES", "TRUNCATE nv_embed.{}"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(statement.format(table))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("SELECT nv_embed.record_models('[]')")


def test_no_setting_holds_or_moves_the_endpoint(app: Connection, connect: Callable[..., Connection]) -> None:
    endpoint = one(connect(), "SELECT endpoint FROM nv_embed.settings")
    for name in ("nv_embed.endpoint", "nv_embed.sidecar", "nv_embed.python_path", "plpython3.python_path"):
        app.execute(f"SET {name} = '127.0.0.1:1'")
    assert one(app, "SELECT vector_dims(nv_embed('hello', 384))") == 384
    assert one(app, "SELECT count(*) FROM pg_settings WHERE setting = %s", [endpoint]) == 0


def test_messages_do_not_tell_the_endpoint(app: Connection, connect: Callable[..., Connection]) -> None:
    connect().execute("SELECT nv_embed.configure('127.0.0.1:1')")
    with pytest.raises(psycopg.Error) as raised:
        app.execute("SELECT nv_embed('hello')")
    everything = " ".join(str(value) for value in (raised.value, raised.value.diag.context, raised.value.diag.message_detail))
    assert "127.0.0.1" not in everything
    assert "127.0.0.1" not in one(app, "SELECT message FROM nv_embed.health()")


def test_objects_of_a_caller_are_not_picked_up_by_the_functions(app: Connection) -> None:
    app.execute("CREATE TEMP TABLE settings (endpoint text, timeout_s real)")
    app.execute("INSERT INTO settings VALUES ('127.0.0.1:1', 1)")
    app.execute("CREATE TEMP TABLE pg_config (name text, setting text)")
    app.execute("INSERT INTO pg_config VALUES ('PKGLIBDIR', '/tmp/evil')")
    app.execute("SET search_path = pg_temp, public")
    assert one(app, "SELECT vector_dims(public.nv_embed('hello', 384))") == 384


def test_types_of_a_caller_do_not_run_with_the_rights_of_a_definer(app: Connection, connect: Callable[..., Connection]) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), body text)")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    owner.execute(
        "CREATE FUNCTION add_doc(t text) RETURNS void SECURITY DEFINER SET search_path = '' LANGUAGE sql"
        " AS 'INSERT INTO public.docs (body) VALUES (t)'"
    )
    app.execute("CREATE FUNCTION pg_temp.spy() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'ran as %', current_user; END $$")
    for name in ("text", "uuid", "refcursor"):
        app.execute(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} CHECK (pg_temp.spy())")
    app.execute("SELECT public.add_doc('x')")
    assert one(owner, "SELECT count(embedding) FROM docs") == 1


def test_default_privileges_and_roles_that_read_all_data_do_not_open_the_settings(connect: Callable[..., Connection]) -> None:
    owner, app = connect(), connect("app")
    owner.execute("GRANT pg_read_all_data, pg_write_all_data TO app")
    endpoint = one(owner, "SELECT endpoint FROM nv_embed.settings")
    try:
        assert app.execute("SELECT * FROM nv_embed.settings").fetchall() == []
        assert app.execute("UPDATE nv_embed.settings SET endpoint = '127.0.0.1:1'").rowcount == 0
    finally:
        owner.execute("REVOKE pg_read_all_data, pg_write_all_data FROM app")
    owner.execute("DROP EXTENSION nv_embed")
    owner.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO app; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO app")
    owner.execute("CREATE EXTENSION nv_embed")
    owner.execute("SELECT nv_embed.configure(%s)", [endpoint])
    for statement in ("SELECT * FROM nv_embed.settings", "SELECT nv_embed.configure('127.0.0.1:1')", "SELECT nv_embed.start_session()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(statement)


@BOTH
def test_a_role_cannot_declare_on_anothers_table_or_forge_its_declaration(app: Connection, connect: Callable[..., Connection]) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); GRANT SELECT, INSERT ON docs TO app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("INSERT INTO nv_embed.embedding (relation, target, source, mode, truncate) VALUES ('docs', 'e', '{body}', 'sync', 'NONE')")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    for statement in ("DELETE FROM nv_embed.embedding", "DELETE FROM nv_embed.generation"):
        assert app.execute(statement).rowcount == 0
    app.execute("CREATE TABLE own (id int PRIMARY KEY)")
    for statement in (
        "UPDATE nv_embed.embedding SET source = '{id}'",
        "UPDATE nv_embed.generation SET revision = 'x'",
        "INSERT INTO nv_embed.embedding (id, relation, target, source, mode, truncate) OVERRIDING SYSTEM VALUE"
        " VALUES (99, 'own', 'e', '{id}', 'sync', 'NONE')",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            app.execute(statement)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("SELECT nv_embed.drop_auto_embed('docs')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute("INSERT INTO nv_embed.generation (embedding, model, revision, dim, storage, target) VALUES (1, 'm', 'r', 1, 'vector', 'e')")


def test_a_writer_without_the_right_to_the_vectors_is_told_what_to_grant(app: Connection, connect: Callable[..., Connection]) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); GRANT INSERT ON docs TO app")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
        app.execute("INSERT INTO docs VALUES (1, 'hello')")
    assert raised.value.diag.message_hint is not None
    owner.execute(raised.value.diag.message_hint)
    app.execute("INSERT INTO docs VALUES (1, 'hello')")
    assert one(owner, "SELECT count(embedding) FROM docs") == 1


def test_rows_that_their_writer_may_not_see_are_refused_rather_than_left_without_vectors(app: Connection, connect: Callable[..., Connection]) -> None:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, body text, tenant text); GRANT SELECT, INSERT, UPDATE ON docs TO app")
    owner.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384)")
    owner.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    owner.execute("CREATE POLICY reads ON docs FOR SELECT USING (tenant = current_user); CREATE POLICY writes ON docs FOR INSERT WITH CHECK (true)")
    owner.execute("CREATE POLICY changes ON docs FOR UPDATE USING (tenant = current_user)")
    app.execute("INSERT INTO docs VALUES (1, 'mine', 'app')")
    with pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
        app.execute("INSERT INTO docs VALUES (2, 'not mine', 'other')")
    assert "row-level security hides 1 of the rows" in str(raised.value)
    assert owner.execute("SELECT id, embedding IS NOT NULL FROM docs").fetchall() == [(1, True)]


def test_a_member_of_nv_embed_admin_may_configure(connect: Callable[..., Connection]) -> None:
    owner, app = connect(), connect("app")
    owner.execute("GRANT nv_embed_admin TO app")
    try:
        endpoint = one(owner, "SELECT endpoint FROM nv_embed.settings")
        app.execute("SELECT nv_embed.configure(%s, 30)", [endpoint])
        assert owner.execute("SELECT endpoint, timeout_s FROM nv_embed.settings").fetchall() == [(endpoint, 30.0)]
        for wrong in ("localhost", "http://host:1", "", None, "unix:relative", "host:99999999"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                app.execute("SELECT nv_embed.configure(%s)", [wrong])
    finally:
        owner.execute("REVOKE nv_embed_admin FROM app")


OURS = """
    (
        SELECT 'pg_proc'::regclass AS catalog, p.oid FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'nv_embed' OR n.nspname = 'public' AND p.proname LIKE 'nv\\_%'
        UNION ALL
        SELECT 'pg_class', c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'nv_embed' AND c.relkind NOT IN ('S', 'i')
        UNION ALL
        SELECT 'pg_namespace', oid FROM pg_namespace WHERE nspname = 'nv_embed'
    ) AS ours
"""


@BOTH
def test_every_function_that_runs_as_its_owner_pins_its_search_path(db: Connection) -> None:
    functions = f"pg_proc AS p JOIN {OURS} ON ours.oid = p.oid AND ours.catalog = 'pg_proc'::regclass WHERE p.prosecdef"
    assert one(db, f"SELECT count(*) FROM {functions}") > 0
    unpinned = f"SELECT p.oid::regprocedure::text FROM {functions} AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)"
    assert db.execute(unpinned).fetchall() == []


@BOTH
def test_every_object_carries_a_comment(db: Connection) -> None:
    assert one(db, f"SELECT count(*) FROM {OURS}") > 50
    silent = f"SELECT pg_describe_object(catalog, oid, 0) FROM {OURS} WHERE obj_description(oid, catalog::text::name) IS NULL"
    assert db.execute(silent).fetchall() == []


def test_every_object_of_ours_is_the_extensions(db: Connection) -> None:
    apart = (
        f"SELECT pg_describe_object(catalog, oid, 0) FROM {OURS} WHERE NOT EXISTS ("
        "SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'nv_embed'"
        " WHERE d.classid = catalog AND d.objid = ours.oid AND d.deptype = 'e')"
    )
    assert db.execute(apart).fetchall() == []


def hostile(connect: Callable[..., Connection]) -> tuple[Connection, Connection]:
    """An ordinary role's table, and a superuser who must not run that role's functions by searching it."""
    superuser, owner = connect(), connect("app")
    superuser.execute("CREATE TABLE caught (by_role name); GRANT INSERT, SELECT ON caught TO app")
    superuser.execute("CREATE SCHEMA hostile AUTHORIZATION app")
    owner.execute("CREATE TYPE hostile.mood AS ENUM ('happy')")
    for result in ("text", "public.halfvec", "int"):
        name = result.replace("public.", "")
        value = {"text": "'happy'", "public.halfvec": "array_fill(1, ARRAY[384])::public.vector::public.halfvec", "int": "0"}[result]
        owner.execute(
            f"CREATE FUNCTION hostile.to_{name}(hostile.mood) RETURNS {result} LANGUAGE plpgsql AS"
            f" $$BEGIN INSERT INTO public.caught VALUES (current_user); RETURN {value}; END$$"
        )
        owner.execute(f"CREATE CAST (hostile.mood AS {result}) WITH FUNCTION hostile.to_{name} AS IMPLICIT")
    owner.execute("CREATE TABLE hostile.docs (id int PRIMARY KEY, body text, m hostile.mood DEFAULT 'happy')")
    return superuser, owner


def search_all(searcher: Connection) -> None:
    """What fails, fails; nothing of the owner's may have run by then."""
    for statement in (
        "SELECT (hit).id FROM nv_search(NULL::hostile.docs, 'happy')",
        "SELECT (hit).id FROM nv_hybrid_search(NULL::hostile.docs, 'happy text')",
        "SELECT nv_embed.explain_search(NULL::hostile.docs, nv_embed_query('happy', 384))",
        "SELECT * FROM nv_embed.storage_report('hostile.docs')",
        "SELECT nv_embed.create_text_index_sql('hostile.docs')",
    ):
        with suppress(psycopg.errors.ObjectNotInPrerequisiteState):
            searcher.execute(statement)


@EXTENSION
def test_a_cast_of_the_owners_is_not_run_for_words(connect: Callable[..., Connection]) -> None:
    superuser, owner = hostile(connect)
    owner.execute("SELECT nv_embed.auto_embed('hostile.docs', '{body} {m}', dim => 384)")
    owner.execute("INSERT INTO hostile.docs VALUES (1, 'text')")
    search_all(superuser)
    assert superuser.execute("SELECT * FROM caught").fetchall() == []
    assert superuser.execute("SELECT (hit).id FROM nv_hybrid_search(NULL::hostile.docs, 'happy')").fetchall() == [(1,)]


@EXTENSION
def test_a_column_of_vectors_that_became_another_is_not_read(connect: Callable[..., Connection]) -> None:
    superuser, owner = hostile(connect)
    owner.execute("SELECT nv_embed.auto_embed('hostile.docs', '{body}', dim => 384)")
    owner.execute("INSERT INTO hostile.docs VALUES (1, 'text')")
    owner.execute("ALTER TABLE hostile.docs DROP COLUMN embedding; ALTER TABLE hostile.docs ADD embedding hostile.mood DEFAULT 'happy'")
    search_all(superuser)
    assert superuser.execute("SELECT * FROM caught").fetchall() == []
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="not where they were declared"):
        superuser.execute("SELECT * FROM nv_search(NULL::hostile.docs, 'x')")


@EXTENSION
@pytest.mark.parametrize("made", ["view", "table"])
def test_chunks_that_are_no_chunk_table_are_not_read(connect: Callable[..., Connection], made: str) -> None:
    superuser, owner = hostile(connect)
    owner.execute("SELECT nv_embed.auto_embed('hostile.docs', '{body}', dim => 384)")
    owner.execute("INSERT INTO hostile.docs VALUES (1, 'text')")
    pieces = "SELECT id, m AS seq, m AS start_char, m AS end_char, embedding FROM hostile.docs"
    owner.execute(f"CREATE {made} hostile.pieces AS {pieces}")
    columns = "embedding, model, revision, dim, storage, target, source"
    owner.execute(
        f"WITH gone AS (DELETE FROM nv_embed.generation RETURNING *) INSERT INTO nv_embed.generation ({columns}, chunks)"
        f" SELECT {columns}, 'hostile.pieces' FROM gone"
    )
    search_all(superuser)
    assert superuser.execute("SELECT * FROM caught").fetchall() == []


def test_who_installs_where_everybody_may_create_is_warned(cluster: Cluster) -> None:
    cluster.create_database("open")
    try:
        with cluster.connect("open") as connection:
            said: list[str] = []
            connection.add_notice_handler(lambda notice: said.append(f"{notice.severity_nonlocalized}: {notice.message_primary}"))
            connection.execute(
                "CREATE SCHEMA apart; CREATE EXTENSION vector SCHEMA apart; CREATE EXTENSION nv_embed CASCADE; DROP EXTENSION nv_embed"
            )
            assert not any(line.startswith("WARNING") for line in said)
            connection.execute("GRANT CREATE ON SCHEMA apart TO PUBLIC; CREATE EXTENSION nv_embed")
            assert "WARNING: every role may create objects in schema apart, and could have nv_embed call its own" in said
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE open WITH (FORCE)")
