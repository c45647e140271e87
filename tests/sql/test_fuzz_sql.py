"""
Arguments that nobody would give, to every function that SQL can call: each ends with a result or with an error that says what was wrong with them.

The functions and their types are read from the catalog, so one that is added is fuzzed too. NV_EMBED_FUZZ_EXAMPLES=1000 tries for longer.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from conftest import Connection
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

EXAMPLES = int(os.environ.get("NV_EMBED_FUZZ_EXAMPLES", "8"))
TIMEOUT = "10s"
EFFORT = settings(database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))

ALLOWED = {
    "0A": "feature not supported",
    "22": "data exception: ours is 22023",
    "23": "integrity constraint",
    "2B": "something depends on it",
    "34": "invalid cursor name",
    "40": "serialisation",
    "42": "syntax, names and rights: ours are 42704 and 42501",
    "54": "program limit",
    "55": "not in the prerequisite state",
}
"""Classes of SQLSTATE of errors that the arguments are to blame for: no internal ones, none of PL/Python or PL/pgSQL, no timeouts."""

NO_ROW = "P0002"
"""What a step says of a row that its caller has found."""

TEXTS = (
    "",
    " ",
    "passage",
    "query",
    "NONE",
    "END",
    "fake",
    "{body}",
    "{",
    "{nothing}",
    "'; SELECT 1",
    "%I %s $1 {{}}",
    "async",
    "halfvec",
    "hnsw",
    "id > 1",
    "0",
    "\u202e\U0001f9ea\u0301",
)
WHOLE = (0, 1, -1, 2, 3, 384, 385, 2048, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31))
LONG = (2**63 - 1, -(2**63))
REALS = ("NaN", "Infinity", "-Infinity", "0", "-0", "1", "4", "-1", "1e-45", "3e38")
VECTORS = ("[1]", "[0,0,0]", "[1,2,3]", f"[{','.join(['0.1'] * 384)}]", f"[{','.join(['0'] * 384)}]", f"[{','.join(['1'] * 2000)}]", "[]", "[NaN]")
RELATIONS = ("docs", "plain", "pieces", "parts", "nv_embed.status", "pg_class", "docs_pkey", "nv_embed.job_id_seq", "0", "999999999")
INTERVALS = ("0 s", "-1 day", "10 ms")


def literal(value: object) -> str:
    return sql.Literal(value).as_string(None)


def quoted(values: "tuple[object, ...]", type_name: str) -> "st.SearchStrategy[str]":
    return st.sampled_from([f"{literal(str(value))}::{type_name}" for value in values])


def arrays(elements: "st.SearchStrategy[str]", type_name: str) -> "st.SearchStrategy[str]":
    """With nulls, without elements, of two dimensions, and from another bound than 1."""
    filled = st.lists(elements, max_size=3).map(lambda found: f"ARRAY[{', '.join(found)}]::{type_name}[]")
    square = st.lists(elements, min_size=2, max_size=2).map(lambda found: f"ARRAY[[{found[0]}], [{found[1]}]]::{type_name}[]")
    return st.one_of(filled, square)


characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
texts = st.one_of(st.sampled_from(TEXTS), st.text(characters, max_size=20)).map(lambda text: f"{literal(text)}::text")
whole = st.one_of(st.sampled_from(WHOLE), st.integers(-(2**31), 2**31 - 1))

OF_TYPE: dict[str, "st.SearchStrategy[str]"] = {
    "text": texts,
    "name": st.one_of(quoted(("embedding", "body", "id", "", "none", 'Odd "Name'), "name"), texts.map(lambda text: f"left({text}, 30)::name")),
    "smallint": quoted(WHOLE[:-2], "smallint"),
    "integer": whole.map(lambda number: f"({number})::integer"),
    "bigint": st.one_of(whole, st.sampled_from(LONG)).map(lambda number: f"({number})::bigint"),
    "oid": quoted((0, 1, 16384, 2**32 - 1), "oid"),
    "real": quoted(REALS, "real"),
    "double precision": quoted(REALS, "double precision"),
    "boolean": quoted((True, False), "boolean"),
    "regclass": quoted(RELATIONS, "regclass"),
    "regtype": quoted(("docs", "text", "vector", "0", "999999999"), "regtype"),
    "regconfig": quoted(("english", "simple"), "regconfig"),
    "regprocedure": quoted(("0", "nv_embed.health()"), "regprocedure"),
    "refcursor": quoted(("", "none"), "refcursor"),
    "interval": quoted(INTERVALS, "interval"),
    "timestamp with time zone": quoted(("-infinity", "infinity", "2000-01-01", "294276-01-01"), "timestamptz"),
    "bytea": quoted(("", "\\x00ff"), "bytea"),
    "jsonb": quoted(("null", "{}", "[]", "1", '{"a": [1, "\\u00e9"]}', '[{"name": 1}]'), "jsonb"),
    "json": quoted(("null", "{}", "[]"), "json"),
    "vector": quoted(VECTORS, "vector"),
    "halfvec": quoted(VECTORS, "halfvec"),
    "anyelement": st.sampled_from(
        ["NULL::docs", "NULL::plain", "NULL::pieces", "NULL::parts", "NULL::pg_class", "1", "'x'::text", "ROW(1, 2)", "NULL::nv_embed.status"]
    ),
    "anyarray": st.sampled_from(["ARRAY['x', NULL]", "'{}'::int[]", "ARRAY['[1,2]'::vector]", "ARRAY[[1], [2]]", "NULL::text[]"]),
    "record": st.just("ROW(1, 'x')"),
    "nv_embed.embedding": st.just("(SELECT e FROM nv_embed.embedding AS e ORDER BY id LIMIT 1)"),
    "nv_embed.generation": st.just("(SELECT g FROM nv_embed.generation AS g ORDER BY id LIMIT 1)"),
    "nv_embed.reembedding": st.just("(SELECT r FROM nv_embed.reembedding AS r LIMIT 1)"),
    "nv_embed.job": st.just("ROW(1, '{1}', 1, now(), true, NULL, 0, NULL, NULL)::nv_embed.job"),
    "nv_embed.settings": st.just("ROW(true, 'x', 1, 'y', NULL, NULL, NULL, false)::nv_embed.settings"),
}

FUNCTIONS = """
    SELECT p.oid::regprocedure::text AS signature, quote_ident(n.nspname) || '.' || quote_ident(p.proname) AS name,
        ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, n) ORDER BY n) AS types,
        has_function_privilege('app', p.oid, 'EXECUTE') AS is_public
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'nv_embed'
    WHERE p.prorettype <> 'trigger'::regtype
    ORDER BY 1
"""

HALF_MADE = """
    SELECT 'embedding ' || e.id || ' has ' || count(g.id) || ' live generations'
    FROM nv_embed.embedding AS e LEFT JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
    GROUP BY e.id HAVING count(g.id) <> 1
    UNION ALL
    SELECT 'generation ' || g.id || ' has no column'
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
    WHERE g.state <> 'planned' AND NOT EXISTS (
        SELECT FROM pg_attribute AS a WHERE a.attrelid = coalesce(g.chunks::oid, e.relation::oid) AND a.attname = g.target AND NOT a.attisdropped
    )
    UNION ALL
    SELECT 'embedding ' || e.id || ' has no triggers'
    FROM nv_embed.embedding AS e
    WHERE NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = e.relation AND t.tgname LIKE format('nv_embed_%s_%%', e.id))
"""


ROOT = Path(__file__).resolve().parents[2]
NAMED = {name for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) for name in re.findall(r"\b(\w+)\(", page.read_text())}


class Function(NamedTuple):
    signature: str
    name: str
    types: list[str]
    is_public: bool

    @property
    def is_documented(self) -> bool:
        """Whether it is for users. The others are steps, whose callers have looked at the arguments and complete what they begin."""
        return self.name.rpartition(".")[2] in NAMED


@pytest.fixture
def role(connect: Callable[..., Connection]) -> Connection:
    """An ordinary role with a table of each kind; whatever is called is rolled back."""
    app = connect("app")
    app.execute("CREATE TABLE docs (id int PRIMARY KEY, body text); CREATE TABLE plain (id int PRIMARY KEY, body text, none int)")
    app.execute("CREATE TABLE pieces (id int PRIMARY KEY, body text); CREATE TABLE parts (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    app.execute("CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100)")
    app.execute("SELECT nv_embed.auto_embed('docs', '{body}', dim => 384), nv_embed.auto_embed('parts', '{body}', dim => 384, mode => 'async')")
    app.execute("SELECT nv_embed.auto_embed('pieces', '{body}', dim => 384, chunk_tokens => 8)")
    for table in ("docs", "plain", "pieces", "parts"):
        app.execute(f"INSERT INTO {table} VALUES (1, 'hello'), (2, NULL), (3, 'a longer text of several words, for the pieces, which are short')")
    return app


def arguments(types: list[str]) -> "st.SearchStrategy[tuple[str, ...]]":
    return st.tuples(*map(argument, types))


def argument(type_name: str) -> "st.SearchStrategy[str]":
    of_type = arrays(OF_TYPE[type_name[:-2]], type_name[:-2]) if type_name.endswith("[]") else OF_TYPE[type_name]
    null = "NULL::docs" if type_name == "anyelement" else "NULL::text[]" if type_name == "anyarray" else f"NULL::{type_name}"
    return st.one_of(of_type, of_type, of_type, st.just(null))


def outcome(connection: Connection, statement: str, *, is_step: bool) -> str | None:
    """What is wrong with how a call ended; None: nothing."""
    with connection.transaction(force_rollback=True):
        try:
            with connection.transaction():
                connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(TIMEOUT)))
                connection.execute(statement.encode()).fetchall()
        except psycopg.Error as error:
            if connection.broken:
                raise
            state = error.sqlstate or ""
            return None if state[:2] in ALLOWED or (is_step and state == NO_ROW) else f"{state}: {error}: {error.diag.context}"
        return None if is_step else next((str(wrong) for (wrong,) in connection.execute(HALF_MADE)), None)


def functions(db: Connection) -> list[Function]:
    return [Function(*row) for row in db.execute(FUNCTIONS).fetchall()]


def complaint(function: Function, caller: Connection) -> str | None:
    """What is wrong with how a function takes arguments, by the simplest call that shows it."""

    @given(arguments(function.types))
    @settings(EFFORT, max_examples=EXAMPLES if function.types else 1)
    def ends_well(chosen: tuple[str, ...]) -> None:
        statement = f"SELECT {function.name}({', '.join(chosen)})"
        wrong = outcome(caller, statement, is_step=not function.is_documented)
        assert wrong is None, f"{statement}\n{wrong}"

    try:
        ends_well()
    except AssertionError as error:
        return str(error)
    return None


def test_no_arguments_make_a_function_fail_hang_or_leave_something_half_made(connect: Callable[..., Connection], role: Connection) -> None:
    owner = connect()
    found = functions(owner)
    assert {name.removesuffix("[]") for function in found for name in function.types} <= OF_TYPE.keys(), "each type has values that are odd"
    assert len(found) > 150
    complaints = [complaint(function, role if function.is_public else owner) for function in found]
    assert not any(complaints), "\n\n".join(filter(None, complaints))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("nv_embed.auto_embed('0'::regclass, '{body}')", psycopg.errors.UndefinedTable),
        ("nv_embed.embed_chunks(ARRAY[['a'], ['b']], 8, 0, 384, 'fake', NULL)", psycopg.errors.InvalidParameterValue),
        ("nv_embed.embed_chunks(ARRAY['a'], NULL, 0, 384, 'fake', NULL)", psycopg.errors.InvalidParameterValue),
    ],
)
def test_arguments_that_once_made_a_function_fail_are_refused(db: Connection, call: str, error: type[psycopg.Error]) -> None:
    with pytest.raises(error):
        db.execute(f"SELECT {call}")


def test_no_array_has_no_pieces_and_a_long_suffix_leaves_nothing_of_a_name(db: Connection) -> None:
    assert db.execute("SELECT places, vectors FROM nv_embed.embed_chunks(NULL, 8, 0, 384, 'fake', NULL)").fetchall() == [([], [])]
    db.execute("CREATE TABLE docs (id int); SET statement_timeout = '5s'")
    found = db.execute("SELECT nv_embed.index_name('docs', 'embedding', 384, repeat('x', 60), 'hnsw', NULL)").fetchone()
    assert found is not None
    assert found[0].startswith("_")
