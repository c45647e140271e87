"""
LangChain's filters: what they let pass, by metadata and by columns, and that no key and no value becomes anything else.
"""

import datetime
import decimal
import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from conftest import Connection
from installs import BOTH, Install
from servers import Sidecar

from nv_embed.errors import InvalidInput
from nv_embed.langchain import NvEmbeddings, NvVectorStore

pytestmark = BOTH

HOSTILE = [
    "'; DROP TABLE documents; --",
    "' OR true --",
    "') OR ((true",
    '"',
    '" = 1 OR true OR "',
    "\\' OR true; --",
    "%s %1$L %I %% %(k)s",
    "$1 $$ $x$ ? :name {0} {}",
    "/* */ -- \n",
    "'' || pg_sleep(10) || ''",
    "é \u202e 𝔘 \u0001",
    "",
]

METADATA: list[dict[str, Any]] = [
    {"lang": "en", "year": 2020, "open": True, "score": 0.5, "tags": ["a", "b"], "of": {"x": 1}},
    {"lang": "de", "year": 1999, "open": False, "score": -3, "tags": [], "of": {"x": 2}},
    {"lang": "en", "year": "2020", "open": None},
    {"lang": "fr", "year": 2021.5, "day": "2026-02-03"},
    {"lang": None, "day": "2025-12-31T10:00:00"},
    {},
    {"lang": "EN", "year": 10**20},
    {"lang": ["en"], "year": [2020]},
]

FILTERS: list[tuple[dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    ({"lang": "en"}, lambda m: m.get("lang") == "en"),
    ({"lang": {"$eq": "en"}}, lambda m: m.get("lang") == "en"),
    ({"lang": {"$ne": "en"}}, lambda m: m.get("lang") != "en"),
    ({"lang": {"$in": ["en", "fr"]}}, lambda m: m.get("lang") in ("en", "fr")),
    ({"lang": {"$in": ["en", None]}}, lambda m: m.get("lang") in ("en", None)),
    ({"lang": {"$in": []}}, lambda _: False),
    ({"lang": {"$nin": ["en", "fr"]}}, lambda m: m.get("lang") not in ("en", "fr")),
    ({"lang": {"$nin": []}}, lambda _: True),
    ({"lang": None}, lambda m: m.get("lang") is None),
    ({"lang": {"$ne": None}}, lambda m: m.get("lang") is not None),
    ({"year": 2020}, lambda m: m.get("year") == 2020),
    ({"year": 2020.0}, lambda m: m.get("year") == 2020),
    ({"year": "2020"}, lambda m: m.get("year") == "2020"),
    ({"year": [2020]}, lambda m: m.get("year") == [2020]),
    ({"year": 10**20}, lambda m: m.get("year") == 10**20),
    ({"year": {"$gte": 2020}}, lambda m: isinstance(m.get("year"), int | float) and m["year"] >= 2020),
    ({"year": {"$gt": 1999, "$lt": 2021.5}}, lambda m: isinstance(m.get("year"), int | float) and 1999 < m["year"] < 2021.5),
    ({"year": {"$lte": "2020"}}, lambda m: m.get("year") == "2020"),
    ({"score": {"$lt": 0}}, lambda m: m.get("score", 0) < 0),
    ({"open": True}, lambda m: m.get("open") is True),
    ({"open": {"$lt": True}}, lambda m: m.get("open") is False),
    ({"open": {"$in": (True, False)}}, lambda m: m.get("open") is not None),
    ({"tags": ["a", "b"]}, lambda m: m.get("tags") == ["a", "b"]),
    ({"tags": {"$ne": []}}, lambda m: m.get("tags") != []),
    ({"of": {"x": 1}}, lambda m: m.get("of") == {"x": 1}),
    ({"day": {"$lt": datetime.date(2026, 1, 1)}}, lambda m: m.get("day", "9") < "2026"),
    ({"day": datetime.date(2026, 2, 3)}, lambda m: m.get("day") == "2026-02-03"),
    ({"lang": "en", "year": 2020}, lambda m: m.get("lang") == "en" and m.get("year") == 2020),
    (
        {"$or": [{"lang": "de"}, {"year": {"$gt": 2020}}]},
        lambda m: m.get("lang") == "de" or (type(m.get("year")) in (int, float) and m["year"] > 2020),
    ),
    ({"$and": [{"lang": "en"}, {"$or": [{"open": True}, {"open": {"$eq": None}}]}]}, lambda m: m.get("lang") == "en"),
    ({"$and": []}, lambda _: True),
    ({"$or": []}, lambda _: False),
    ({}, lambda _: True),
    ({"not there": 1}, lambda _: False),
    ({"not there": {"$ne": 1}}, lambda _: True),
]


@pytest.fixture
def embedding(install: Install, sidecar: Sidecar) -> NvEmbeddings | None:
    return NvEmbeddings(sidecar.address) if install.kind == "library" else None


@pytest.fixture
def store(install: Install, own_database: str, embedding: NvEmbeddings | None) -> Iterator[NvVectorStore]:
    store = NvVectorStore.create(install.dsn(own_database), "documents", dim=384, embedding=embedding)
    yield store
    store.close()


def found(store: NvVectorStore, wanted: dict[str, Any]) -> set[int]:
    """The numbers of the documents that pass, without and with the other kinds of search."""
    near = store.similarity_search("a document", k=100, filter=wanted)
    by_words = store.similarity_search("a document", k=100, filter=wanted, hybrid=True)
    diverse = store.max_marginal_relevance_search("a document", k=100, fetch_k=100, filter=wanted)
    assert {d.id for d in near} == {d.id for d in by_words} == {d.id for d in diverse}
    return {int(document.id or "") for document in near}


def test_a_filter_lets_pass_what_it_says(store: NvVectorStore) -> None:
    store.add_texts([f"document {n}" for n in range(len(METADATA))], METADATA, ids=[str(n) for n in range(len(METADATA))])
    for wanted, passes in FILTERS:
        assert found(store, wanted) == {n for n, metadata in enumerate(METADATA) if passes(metadata)}, wanted


def test_there_are_k_documents_wherever_k_pass_a_filter(store: NvVectorStore) -> None:
    store.add_texts([f"document {n}" for n in range(300)], [{"n": n} for n in range(300)])
    documents = store.similarity_search("document 7", k=5, filter={"n": {"$gte": 290}})
    assert len(documents) == 5
    assert all(document.metadata["n"] >= 290 for document in documents)


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"n": {"$gt": None}}, "orders by None"),
        ({"n": {"$gt": [1]}}, "orders by"),
        ({"n": {"$like": "x"}}, r"operator '\$like'"),
        ({"n": {"$gt": 1, "m": 2}}, "operator 'm'"),
        ({"n": {"$in": "abc"}}, r"\$in of a filter has a str"),
        ({"$and": {"n": 1}}, r"\$and of a filter has a dict"),
        ({"$not": {"n": 1}}, r"key '\$not'"),
        ({1: 2}, "key 1"),
        ({"$or": ["n = 1"]}, "a filter is a str"),
        ("n = 1", "a filter is a str"),
        ({"n": object()}, "cannot be written as JSON"),
        ({"n": math.nan}, "cannot be written as JSON"),
        ({"n": "a\0b"}, "NUL"),
        ({"a\0b": {"$gt": 1}}, "NUL"),
        ({"n": "\ud800"}, "no Unicode text"),
        ({"\ud800": {"$gt": 1}}, "no Unicode text"),
    ],
)
def test_a_filter_that_is_none_is_refused_before_anything_is_asked(wanted: Any, says: str) -> None:
    store = NvVectorStore("host=/nowhere", "documents")
    with pytest.raises(InvalidInput, match=says):
        store.similarity_search_by_vector([0.0], filter=wanted)


def test_hostile_values_and_keys_are_values_and_keys(store: NvVectorStore, connect: Callable[..., Connection]) -> None:
    ids = store.add_texts([f"document {text}" for text in HOSTILE], [{"value": text, text: n} for n, text in enumerate(HOSTILE)], ids=HOSTILE)
    assert ids == HOSTILE
    for n, text in enumerate(HOSTILE):
        for wanted in (
            {"value": text},
            {"value": {"$in": [text]}},
            {"value": {"$gte": text, "$lte": text}},
            {text: n},
            {text: {"$gte": n, "$lt": n + 1}},
        ):
            if not any(key.startswith("$") for key in wanted):
                assert [d.id for d in store.similarity_search("document", k=100, filter=wanted)] == [text], wanted
        others = {d.id for d in store.similarity_search("document", k=100, filter={"value": {"$ne": text}})}
        assert others == set(HOSTILE) - {text}
    assert [d.page_content for d in store.get_by_ids(HOSTILE)] == [f"document {text}" for text in HOSTILE]
    store.delete(HOSTILE[:3])
    (count,) = connect().execute("SELECT count(*) FROM documents").fetchone() or ()
    assert count == len(HOSTILE) - 3


@pytest.mark.parametrize("name", ['it\'s "100%" %s; --', "%(k)s", "Select", "a.b", "ü 1"])
def test_hostile_names_are_names(
    install: Install, own_database: str, connect: Callable[..., Connection], embedding: NvEmbeddings | None, name: str
) -> None:
    db = connect()
    db.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(psycopg.sql.Identifier(name)))
    created = NvVectorStore.create(db, name, schema=name, dim=384, embedding=embedding)
    NvVectorStore.create(db, name, schema=name, dim=384, embedding=embedding)
    quoted = psycopg.sql.Identifier(name)
    db.execute(psycopg.sql.SQL("ALTER TABLE {0}.{0} ADD COLUMN {0} text").format(quoted))
    store = NvVectorStore(db, name, schema=name, embedding=embedding, metadata_columns=[name])
    store.add_texts(["one", "two"], [{name: "x"}, {name: "y'", "other": 1}], ids=["1", "2"])
    store.add_texts(["two"], [{name: "y'"}], ids=["2"])
    assert [d.metadata for d in store.similarity_search("two", filter={name: {"$in": ["y'"]}})] == [{name: "y'"}]
    assert [d.id for d in store.max_marginal_relevance_search("two", k=1)] == ["2"]
    assert created.delete(["1"])
    assert store.get_by_ids(["1", "2"])[0].metadata == {name: "y'"}


def test_columns_are_compared_as_their_types_have_them(
    install: Install, own_database: str, connect: Callable[..., Connection], embedding: NvEmbeddings | None
) -> None:
    db = connect()
    db.execute("CREATE TYPE mood AS ENUM ('sad', 'fine')")
    db.execute(
        "CREATE TABLE notes (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, body text, n int, price numeric, at timestamptz, day date,"
        " who uuid, ok boolean, feels mood, tags text[])"
    )
    db.execute("SELECT nv_embed.auto_embed('notes', '{body}', dim => 384)")
    names = ["n", "price", "at", "day", "who", "ok", "feels", "tags"]
    store = NvVectorStore(db, "notes", embedding=embedding, content_column="body", metadata_column=None, metadata_columns=names)
    who = uuid.UUID(int=7)
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    first = {"n": 10, "price": decimal.Decimal("1.50"), "at": at, "day": at.date(), "who": who, "ok": True, "feels": "fine", "tags": ["a", "it's"]}
    one, two = store.add_texts(["one", "two"], [first, {"n": 9}])
    assert (one, two) == ("1", "2")
    assert [d.metadata for d in store.get_by_ids([two, one])] == [{"n": 9}, first]
    passing: list[tuple[dict[str, Any], list[str]]] = [
        ({"n": {"$gt": 9}}, [one]),
        ({"n": {"$in": [9, 11]}}, [two]),
        ({"price": 1.5}, [one]),
        ({"price": {"$lte": decimal.Decimal("1.5")}}, [one]),
        ({"at": {"$gte": at}}, [one]),
        ({"day": {"$lt": datetime.date(2026, 1, 2)}}, [one]),
        ({"day": None}, [two]),
        ({"day": {"$ne": None}}, [one]),
        ({"who": who}, [one]),
        ({"who": {"$ne": who}}, [two]),
        ({"ok": True}, [one]),
        ({"ok": {"$ne": True}}, [two]),
        ({"feels": {"$gt": "sad"}}, [one]),
        ({"$or": [{"n": 9}, {"feels": "fine"}]}, [one, two]),
    ]
    for wanted, ids in passing:
        assert sorted(d.id or "" for d in store.similarity_search("one", filter=wanted)) == ids, wanted
    with pytest.raises(InvalidInput, match="no metadata 'lang'"):
        store.similarity_search("one", filter={"lang": "en"})
    with pytest.raises(InvalidInput, match="document 1 has the metadata 'lang'"):
        store.add_texts(["three"], [{"lang": "en"}])
    with pytest.raises(InvalidInput, match="the filter of 'tags' has a list"):
        store.similarity_search("one", filter={"tags": ["a"]})
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        store.similarity_search("one", filter={"n": "many"})
