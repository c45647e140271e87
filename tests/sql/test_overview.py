"""
What the page shows of a database: with which rights, within which bounds, in both installs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from installs import BOTH, Install
from servers import Sidecar
from workers import drain

from nv_embed.client import Client
from nv_embed.errors import EmbedError, InvalidInput
from nv_embed.overview import Overview

Connection = psycopg.Connection[Any]

pytestmark = BOTH


@dataclass(frozen=True)
class Question:
    relation: str
    target: str
    model: str
    revision: str
    dim: int
    vector: list[float]
    dims: list[int]
    rescore: bool = False


@pytest.fixture
def owner(connect: Callable[..., Connection], install: Install, own_database: str, sidecar: Sidecar) -> Connection:
    """Of a table with a key of two columns and one in pieces, both embedded."""
    owner = connect()
    owner.execute('CREATE TABLE "The rows" (shelf text, place int, body text, PRIMARY KEY (shelf, place))')
    owner.execute("CREATE TABLE long (id bigint PRIMARY KEY, body text)")
    owner.execute("""SELECT nv_embed.auto_embed('"The rows"', source => '{body}', dim => 512, mode => 'async')""")
    owner.execute("SELECT nv_embed.auto_embed('long', source => '{body}', dim => 384, mode => 'async', chunk_tokens => 8)")
    owner.execute("""INSERT INTO "The rows" VALUES ('a', 1, 'copper wire'), ('a', 2, 'rye bread'), ('b', 1, repeat('yeast ', 100))""")
    owner.execute("INSERT INTO long VALUES (1, 'one two three four five six seven eight nine ten eleven copper wire and more')")
    owner.execute('GRANT SELECT ON "The rows" TO app')
    drain(install.dsn(own_database), sidecar.address)
    return owner


@pytest.fixture
def open_as(install: Install, own_database: str, owner: Connection) -> Iterator[Callable[..., Overview]]:
    opened: list[Overview] = []

    def open_overview(user: str | None = None) -> Overview:
        opened.append(Overview(install.dsn(own_database, user)))
        return opened[-1]

    yield open_overview
    for each in opened:
        each.close()


def question(shown: Overview, client: Client, text: str, relation: str = 'public."The rows"') -> Question:
    model, revision, dim = shown.model_of(relation, "embedding")
    vector = [float(component) for component in client.embed([text], input_type="query", dim=dim)[0]]
    return Question(relation, "embedding", model, revision, dim, vector, sorted({dim, 384}, reverse=True))


def test_an_owner_sees_what_is_counted_and_others_what_they_may_search(open_as: Callable[..., Overview]) -> None:
    counted = {row["relation"]: row for row in open_as().overview()["embeddings"]}
    assert {name: (row["coverage"], row["is_counted"]) for name, row in counted.items()} == {'public."The rows"': (1, True), "public.long": (1, True)}
    (row,) = open_as("app").overview()["embeddings"]
    assert (row["relation"], row["dim"], row["is_counted"], row["rows"]) == ('public."The rows"', 512, False, None)


def test_keys_scores_and_short_texts_are_told_for_each_width(open_as: Callable[..., Overview], client: Client) -> None:
    shown = open_as("app")
    columns = shown.search(question(shown, client, "copper wire"))
    assert [(column["dim"], column["vector_bytes"], column["hits"][0]["key"]) for column in columns] == [(512, 1032, "a, 1"), (384, 776, "a, 1")]
    assert columns[0]["hits"][0]["score"] == pytest.approx(1, abs=0.5)
    assert {hit["key"]: len(hit["text"]) for hit in columns[0]["hits"]} == {"a, 1": 11, "a, 2": 9, "b, 1": 300}


def test_of_a_table_in_pieces_the_piece_is_shown(open_as: Callable[..., Overview], client: Client) -> None:
    shown = open_as()
    (column,) = shown.search(question(shown, client, "copper wire", "public.long"))
    assert "copper wire" in column["hits"][0]["text"]
    assert "one two" not in column["hits"][0]["text"]


def test_without_the_right_to_select_a_column_says_so(open_as: Callable[..., Overview], client: Client) -> None:
    shown = open_as("app")
    columns = shown.search(question(shown, client, "copper wire", "public.long"))
    assert all("permission denied" in column["error"] for column in columns)


def test_a_question_that_was_embedded_for_other_vectors_is_to_be_asked_again(open_as: Callable[..., Overview], client: Client) -> None:
    shown = open_as()
    asked = question(shown, client, "copper wire")
    with pytest.raises(InvalidInput, match="search again"):
        shown.search(replace(asked, revision="another"))


def test_a_width_that_is_refused_leaves_the_others(open_as: Callable[..., Overview], client: Client) -> None:
    shown = open_as()
    columns = shown.search(replace(question(shown, client, "copper wire"), dims=[512, 100, 384]))
    assert ["error" in column for column in columns] == [False, True, False]
    assert "100" in columns[1]["error"]


def test_a_percent_sign_in_names_and_templates_is_one(open_as: Callable[..., Overview], owner: Connection, install: Install, client: Client) -> None:
    owner.execute("""CREATE TABLE "100%" ("%s" int PRIMARY KEY, body text)""")
    owner.execute("""SELECT nv_embed.auto_embed('"100%"', source => '100 %% {body}%', dim => 384, mode => 'async')""")
    owner.execute("""INSERT INTO "100%" VALUES (1, 'copper')""")
    drain(install.dsn(owner.info.dbname), client.endpoint)
    (column,) = open_as().search(question(open_as(), client, "copper", 'public."100%"'))
    assert [(hit["key"], hit["text"]) for hit in column["hits"]] == [("1", "100 %% copper%")]


def test_a_vector_that_points_nowhere_has_no_score(open_as: Callable[..., Overview], owner: Connection, client: Client) -> None:
    owner.execute("""INSERT INTO "The rows" VALUES ('c', 1, 'lost', array_fill(0, ARRAY[512])::halfvec)""")
    columns = open_as().search(question(open_as(), client, "copper wire"))
    assert [hit["score"] for column in columns for hit in column["hits"] if hit["key"] == "c, 1"] == [None, None]


@pytest.mark.parametrize(("relation", "target"), [("public.\0long", "embedding"), ("public.long", "embedding\0")])
def test_a_name_that_no_database_can_have_is_the_asker_s_mistake(open_as: Callable[..., Overview], relation: str, target: str) -> None:
    with pytest.raises(InvalidInput, match="NUL"):
        open_as().model_of(relation, target)


def test_nothing_can_be_written(open_as: Callable[..., Overview]) -> None:
    with pytest.raises(EmbedError, match="read-only transaction"), open_as()._transaction() as cursor:
        cursor.execute("DELETE FROM public.long")


def test_what_takes_long_is_given_up(open_as: Callable[..., Overview], owner: Connection, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = open_as()
    asked = question(shown, client, "copper wire")
    owner.execute("BEGIN")
    owner.execute('LOCK TABLE "The rows" IN ACCESS EXCLUSIVE MODE')
    with monkeypatch.context() as patched:
        patched.setattr("nv_embed.overview.STATEMENT_MS", 100)
        assert all("the database took longer" in column["error"] for column in shown.search(asked))
    owner.execute("ROLLBACK")
    assert not any("error" in column for column in shown.search(asked))


def test_a_database_that_comes_back_is_shown_again(open_as: Callable[..., Overview], owner: Connection) -> None:
    shown = open_as()
    assert shown.overview()["embeddings"]
    owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nv_embed page' AND usename = current_user")
    assert shown.model_of("public.long", "embedding")[2] == 384
