"""
Who may see and write pieces, and with whose rights they are kept.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from chunks import OVERLAP, TOKENS, embed, in_step
from conftest import Connection
from installs import BOTH, LIBRARY, Install
from psycopg import sql
from vectors import one, question

from nv_embed.client import Client
from nv_embed.cluster import Cluster

pytestmark = BOTH


@dataclass
class Shared:
    """A table of two tenants, each of whom sees their own rows only, by its owner and by one of them."""

    owner: Connection
    tenant: Connection


@pytest.fixture
def shared(connect: Callable[..., Connection], client: Client) -> Shared:
    owner = connect()
    owner.execute("CREATE TABLE docs (id int PRIMARY KEY, title text, body text, tenant text DEFAULT current_user)")
    owner.execute(f"SELECT nv_embed.auto_embed('docs', '{{title}}: {{body}}', dim => 384, chunk_tokens => {TOKENS}, chunk_overlap => {OVERLAP})")
    owner.execute("INSERT INTO docs SELECT n, 't', repeat('word' || n || ' ', 60), CASE WHEN n < 3 THEN 'app' END FROM generate_series(1, 6) AS n")
    embed(owner, client)
    owner.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON docs TO app")
    owner.execute("ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (tenant = current_user)")
    return Shared(owner, connect("app"))


def test_a_role_sees_the_pieces_of_the_rows_that_it_sees(shared: Shared, client: Client) -> None:
    assert shared.tenant.execute("SELECT DISTINCT id FROM docs_embedding_chunk ORDER BY id").fetchall() == [(1,), (2,)]
    found = shared.tenant.execute("SELECT (hit).id FROM nv_search(NULL::docs, %s::vector, k => 10)", [question(client, "word")]).fetchall()
    assert {key for (key,) in found} == {1, 2}
    assert one(shared.owner, "SELECT count(DISTINCT id) FROM docs_embedding_chunk") == 6


def test_a_role_that_may_not_read_what_is_embedded_sees_no_piece(shared: Shared) -> None:
    shared.owner.execute("REVOKE SELECT ON docs FROM app; GRANT SELECT (id, title, tenant) ON docs TO app")
    assert one(shared.tenant, "SELECT count(*) FROM docs") == 2
    assert one(shared.tenant, "SELECT count(*) FROM docs_embedding_chunk") == 0


def test_a_role_without_rights_on_the_table_cannot_read_its_pieces(shared: Shared) -> None:
    shared.owner.execute("REVOKE ALL ON docs FROM app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.tenant.execute("SELECT count(*) FROM docs_embedding_chunk")


def test_whoever_writes_rows_needs_no_right_on_their_pieces(shared: Shared, client: Client) -> None:
    shared.tenant.execute("INSERT INTO docs (id, title, body) VALUES (20, 'mine', 'a b c')")
    shared.tenant.execute("UPDATE docs SET body = 'changed' WHERE id = 1; DELETE FROM docs WHERE id = 2")
    embed(shared.owner, client)
    in_step(shared.owner, client)
    assert shared.owner.execute("SELECT rows, embedded, pending, failed FROM nv_embed.status").fetchone() == (6, 6, 0, 0)


def test_a_role_cannot_write_pieces_of_rows_that_it_does_not_see_nor_take_any_away(shared: Shared) -> None:
    piece = "INSERT INTO docs_embedding_chunk SELECT %s, 99, 0, 1, embedding FROM docs_embedding_chunk LIMIT 1"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.tenant.execute(piece, [5])
    assert shared.tenant.execute("DELETE FROM docs_embedding_chunk").rowcount == 0
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.tenant.execute("UPDATE docs_embedding_chunk SET start_char = 0")
    shared.owner.execute("REVOKE INSERT, UPDATE ON docs FROM app")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        shared.tenant.execute(piece, [1])


@LIBRARY
def test_the_owner_of_a_table_must_have_the_installer_for_a_member(connect: Callable[..., Connection]) -> None:
    app = connect("app")
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="role installer, who installed nv_embed, is no member of app") as error:
        app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 20)")
    assert error.value.diag.message_hint == "GRANT app TO installer"


@pytest.fixture
def app(connect: Callable[..., Connection], cluster: Cluster, install: Install) -> Iterator[Connection]:
    """An ordinary role that owns tables."""
    with cluster.connect() as superuser:
        superuser.execute(sql.SQL("GRANT app TO {}").format(sql.Identifier(install.owner)))
        yield connect("app")
        superuser.execute(sql.SQL("REVOKE app FROM {}").format(sql.Identifier(install.owner)))


@pytest.mark.parametrize(
    "altered",
    [
        "CREATE TRIGGER spy BEFORE DELETE ON docs_embedding_chunk FOR EACH ROW EXECUTE FUNCTION spy()",
        "CREATE RULE spy AS ON DELETE TO docs_embedding_chunk DO ALSO SELECT spied()",
        "CREATE TABLE spied_on () INHERITS (docs_embedding_chunk)",
        "ALTER TABLE docs_embedding_chunk ALTER id TYPE bigint",
        "CREATE INDEX ON docs_embedding_chunk ((seq + spied_once()))",
        "CREATE INDEX ON docs_embedding_chunk (seq) WHERE seq > spied_once()",
        "CREATE STATISTICS spied_on ON (seq + spied_once()), start_char FROM docs_embedding_chunk",
        "SET constraint_exclusion = on; ALTER TABLE docs_embedding_chunk ADD CHECK (spied_once() > -1)",
        'CREATE RULE "_RETURN" AS ON SELECT TO docs_embedding_chunk DO INSTEAD'
        " SELECT spied() AS id, 0 AS seq, 0 AS start_char, 0 AS end_char, NULL::halfvec(384) AS embedding",
    ],
)
def test_nothing_of_the_owners_runs_with_the_rights_of_the_triggers_owner(app: Connection, altered: str) -> None:
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 20); INSERT INTO docs VALUES (1, 'a')")
    app.execute("CREATE SEQUENCE calls")  # it counts what is rolled back too
    app.execute("CREATE FUNCTION spied() RETURNS int LANGUAGE sql AS $$SELECT nextval('public.calls')::int$$")
    app.execute("CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM public.spied(); RETURN OLD; END'")
    if "ALTER id" in altered or "_RETURN" in altered:
        app.execute("DELETE FROM docs_embedding_chunk")
        for policy in ("readable", "written", "workers"):
            app.execute(f"DROP POLICY nv_embed_{policy} ON docs_embedding_chunk")
        for (trigger,) in app.execute("SELECT tgname FROM pg_trigger WHERE tgrelid = 'docs_embedding_chunk'::regclass").fetchall():
            app.execute(f"DROP TRIGGER {trigger} ON docs_embedding_chunk")
        if "_RETURN" in altered:
            app.execute("ALTER TABLE docs_embedding_chunk DISABLE ROW LEVEL SECURITY, DROP CONSTRAINT docs_embedding_chunk_pkey")
            app.execute("VACUUM docs_embedding_chunk")  # after which the catalog says that it has neither triggers nor indexes
    app.execute("CREATE FUNCTION spied_once() RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN public.spied(); END'")
    app.execute(altered)
    app.execute("ALTER SEQUENCE calls RESTART")
    for change in ("DELETE FROM docs", "TRUNCATE docs", "UPDATE docs SET id = 2"):
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="has been altered"):
            app.execute(change)
    assert not one(app, "SELECT is_called FROM calls")
    assert one(app, "SELECT count(*) FROM docs WHERE id = 1") == 1


def test_an_operator_of_the_owners_is_not_taken_for_the_one_of_the_keys_type(
    app: Connection, connect: Callable[..., Connection], client: Client
) -> None:
    """One for a domain comes before the one for its base type, where both are in one schema."""
    connect().execute("CREATE EXTENSION citext SCHEMA public")
    app.execute("CREATE SEQUENCE calls; CREATE DOMAIN mail AS citext; CREATE TABLE docs (id mail PRIMARY KEY, body text)")
    app.execute(
        "CREATE FUNCTION spy(mail, mail) RETURNS boolean LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM nextval(''public.calls''); RETURN $1::public.citext OPERATOR(public.=) $2::public.citext; END';"
        "CREATE OPERATOR = (LEFTARG = mail, RIGHTARG = mail, FUNCTION = spy, MERGES, HASHES)"
    )
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, mode => 'async', chunk_tokens => 20)")
    app.execute("INSERT INTO docs VALUES ('One', 'first'), ('two', 'second')")
    embed(app, client)
    app.execute("UPDATE docs SET id = 'three', body = 'third' WHERE id::citext = 'ONE'; DELETE FROM docs WHERE id::citext = 'TWO'")
    embed(app, client)
    assert not one(app, "SELECT is_called FROM calls")
    asked = question(client, "third")
    assert one(app, "SELECT (hit).id FROM nv_search(NULL::docs, %s::vector)", [asked]) == "three"
    assert one(app, "SELECT (hit).id FROM nv_hybrid_search(NULL::docs, 'third', embedding => %s::vector)", [asked]) == "three"
    assert app.execute("SELECT id, rows, embedded FROM docs_embedding_chunk, nv_embed.status").fetchall() == [("three", 1, 1)]
    assert not one(app, "SELECT is_called FROM calls")


def test_the_counting_trigger_serves_no_other_table(app: Connection, client: Client) -> None:
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE other (seq int)")
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384, chunk_tokens => 20)")
    generation = one(app, "SELECT id FROM nv_embed.generation")
    app.execute(
        f"CREATE TRIGGER mine AFTER INSERT ON other REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT"
        f" EXECUTE FUNCTION nv_embed.count_chunks({generation})"
    )
    with pytest.raises(psycopg.errors.UndefinedObject, match="belongs to no declaration"):
        app.execute("INSERT INTO other VALUES (0)")
    app.execute(f"CREATE TRIGGER mine AFTER INSERT ON docs_embedding_chunk FOR EACH STATEMENT EXECUTE FUNCTION nv_embed.count_chunks({generation})")
    app.execute("SELECT nv_embed.alter_auto_embed('docs', mode => 'async'); INSERT INTO docs VALUES (1, 'a')")
    with pytest.raises(psycopg.errors.UndefinedObject, match="belongs to no declaration"):
        embed(app, client)
