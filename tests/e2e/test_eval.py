"""
`nv-embed eval` on collections of a few documents, against what is computed here without a database.
"""

import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy
import psycopg
import pytest
from beir import DOCUMENTS, GRADES, QUERIES, write_collection
from installs import Install
from program import Done, Program, eventually, failed, succeeded
from psycopg import sql

from nv_embed.client import Client

ASKED = {query: text for query, text in QUERIES.items() if query in GRADES}
WIDTH = 2048


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "things")


def run(dsn: str, *arguments: object) -> Done:
    return Program(Path("/nowhere"))("eval", "--database-url", dsn, *map(str, arguments))


def measured(dsn: str, *arguments: object) -> Any:
    """What `eval --json` prints."""
    return json.loads(succeeded(run(dsn, "--json", *arguments)))


def lines(found: Any, place: int = 0) -> dict[tuple[str, int | None, str | None], Any]:
    """The lines of a collection's table, by plan, dimension and storage."""
    return {(line["plan"], line["dim"], line["storage"]): line for line in found["collections"][place]["results"]}


def ranked(client: Client, documents: Mapping[str, tuple[str, str]], queries: Mapping[str, str], dim: int = WIDTH) -> dict[str, list[str]]:
    """Every document for each query, by the cosine of the first `dim` components."""
    passages = numpy.asarray(client.embed([f"{title} {text}" for title, text in documents.values()]))[:, :dim]
    questions = numpy.asarray(client.embed(list(queries.values()), input_type="query"))[:, :dim]
    scores = (questions / numpy.linalg.norm(questions, axis=1, keepdims=True)) @ (passages / numpy.linalg.norm(passages, axis=1, keepdims=True)).T
    return {query: [list(documents)[place] for place in numpy.argsort(-line, kind="stable")] for query, line in zip(queries, scores, strict=True)}


def scores(found: Mapping[str, Sequence[str]], grades: Mapping[str, Mapping[str, int]] = GRADES) -> tuple[float, float]:
    """Mean nDCG@10 and Recall@5."""
    gains = {query: sum(grades[query].get(id, 0) / log2(place + 1) for place, id in enumerate(ids[:10], 1)) for query, ids in found.items()}
    best = {query: sum(grade / log2(place + 1) for place, grade in enumerate(sorted(grades[query].values(), reverse=True), 1)) for query in found}
    right = {query: {id for id, grade in grades[query].items() if grade} for query in found}
    recalls = [len(right[query] & set(ids[:5])) / len(right[query]) for query, ids in found.items()]
    return float(numpy.mean([gains[query] / best[query] for query in found])), float(numpy.mean(recalls))


def figures(line: Mapping[str, float]) -> tuple[float, float]:
    return line["ndcg_at_10"], line["recall_at_5"]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_figures_are_those_of_a_search_through_everything(dsn: str, client: Client, tmp_path: Path, packed: bool) -> None:
    found = measured(dsn, write_collection(tmp_path / "things", packed=packed), "--dims", "2048,384", "--storage", "halfvec")
    table = lines(found)
    assert (found["collections"][0]["documents"], found["collections"][0]["queries"]) == (len(DOCUMENTS), len(ASKED))
    assert figures(table["exact", 2048, "halfvec"]) == pytest.approx(scores(ranked(client, DOCUMENTS, ASKED)))
    assert figures(table["exact prefix", 384, "halfvec"]) == pytest.approx(scores(ranked(client, DOCUMENTS, ASKED, 384)))


def test_an_index_over_few_rows_finds_what_is_there(dsn: str, client: Client, collection: Path) -> None:
    table = lines(measured(dsn, collection, "--dims", "2048,384", "--storage", "halfvec,vector,bit"))
    exact, prefix = scores(ranked(client, DOCUMENTS, ASKED)), scores(ranked(client, DOCUMENTS, ASKED, 384))
    for storage in ("halfvec", "vector"):
        assert figures(table["hnsw 384", 384, storage]) == pytest.approx(prefix)
        assert figures(table["hnsw 384 + re-score", 384, storage]) == pytest.approx(exact)
    for dim in (2048, 384):
        assert figures(table[f"hnsw bit {dim} + re-score", dim, "bit"]) == pytest.approx(exact)
        assert f"hnsw bit {dim}" in {plan for plan, _, _ in table}


def test_bytes_are_what_the_types_take(dsn: str, collection: Path) -> None:
    table = lines(measured(dsn, collection, "--dims", "384", "--storage", "vector,halfvec,bit"))
    for plan, storage, size in (("hnsw 384", "vector", 8 + 4 * 384), ("hnsw 384", "halfvec", 8 + 2 * 384), ("hnsw bit 384", "bit", 8 + 384 / 8)):
        assert table[plan, 384, storage]["bytes_per_vector"] == size
    assert table["exact prefix", 384, "vector"]["index_bytes"] is None
    for line in table.values():
        assert line["index_bytes"] is None or line["index_bytes_per_row"] == line["index_bytes"] / len(DOCUMENTS)


def test_more_dimensions_than_an_index_holds_are_left_out(dsn: str, collection: Path) -> None:
    found = measured(dsn, collection, "--dims", "2048", "--storage", "vector")
    assert [line["plan"] for line in found["collections"][0]["results"]] == ["exact", "exact + full text", "full text", "BM25"]
    assert "2,000 dimensions of a vector" in found["collections"][0]["left_out"][0]


def test_words_are_searched_beside_it(dsn: str, collection: Path) -> None:
    table = lines(measured(dsn, collection, "--dims", "2048", "--storage", "halfvec"))
    assert table["BM25", None, None]["recall_at_5"] == 1
    assert table["full text", None, None]["recall_at_5"] == 1
    assert table["exact + full text", None, None]["recall_at_5"] == 1


def test_times_are_of_every_query(dsn: str, collection: Path) -> None:
    found = measured(dsn, collection, "--dims", "2048", "--storage", "halfvec", "--limit-queries", "3")["collections"][0]
    assert found["queries"] == 3
    for latency in [found["query_latency"], *(line["latency"] for line in found["results"])]:
        assert 0 < latency["median_ms"] <= latency["p95_ms"]


def test_a_query_that_is_longer_than_the_model_reads_is_cut(dsn: str, tmp_path: Path) -> None:
    """The fake engine reads 8,192 tokens."""
    long = {**ASKED, "q1": ASKED["q1"] + " and again" * 5000}
    found = measured(dsn, write_collection(tmp_path / "things", queries=long), "--dims", "2048", "--storage", "halfvec")
    assert (found["collections"][0]["queries"], found["collections"][0]["cut_queries"]) == (len(ASKED), 1)


def test_pieces_are_measured_beside_whole_documents(dsn: str, client: Client, collection: Path) -> None:
    found = measured(dsn, collection, "--dims", "2048", "--storage", "halfvec", "--chunk-tokens", "0,8", "--chunk-overlap", "2")
    whole, pieces = found["tables"]
    assert (whole["chunk_tokens"], whole["vectors"]) == (None, len(DOCUMENTS))
    assert (pieces["chunk_tokens"], pieces["chunk_overlap"], pieces["documents"]) == (8, 2, len(DOCUMENTS))
    assert pieces["vectors"] > 2 * len(DOCUMENTS)
    exact = [line for line in found["collections"][0]["results"] if line["plan"] == "exact"]
    assert [line["text"] for line in exact] == ["whole", "pieces of 8"]
    assert figures(exact[0]) == pytest.approx(scores(ranked(client, DOCUMENTS, ASKED)))
    assert [line["plan"] for line in found["collections"][0]["results"]].count("BM25") == 1


def parallel(folder: Path) -> tuple[Path, dict[str, dict[str, tuple[str, str]]], dict[str, dict[str, str]]]:
    """Three collections with equal ids, called by languages. Each leaves some words out, as if it had others for them."""
    left_out = {"de": 0, "en": 1, "th": 2}
    documents = {name: {id: (title, " ".join(text.split()[skip:])) for id, (title, text) in DOCUMENTS.items()} for name, skip in left_out.items()}
    queries = {name: {id: " ".join(text.split()[skip:]) for id, text in QUERIES.items()} for name, skip in left_out.items()}
    for name in documents:
        write_collection(folder / name, documents[name], queries[name])
    return folder, documents, queries


def test_every_language_is_asked_in_every_other(dsn: str, client: Client, tmp_path: Path) -> None:
    folder, documents, queries = parallel(tmp_path / "tongues")
    (matrix,) = measured(dsn, "--cross", folder)["cross"]
    assert (matrix["names"], matrix["dim"]) == (["de", "en", "th"], WIDTH)
    expected = [
        [scores(ranked(client, documents[answered], {id: queries[asked][id] for id in GRADES}))[1] for answered in documents] for asked in queries
    ]
    assert numpy.array(matrix["recall_at_5"]) == pytest.approx(numpy.array(expected))
    assert matrix["same_language"] == pytest.approx(numpy.trace(expected) / 3)
    assert matrix["cross_lingual"] == pytest.approx((numpy.sum(expected) - numpy.trace(expected)) / 6)
    said = succeeded(run(dsn, "--cross", folder / "de", folder / "th", "--dims", "384"))
    assert "Recall@5, exact, 384 dimensions" in said
    assert "of different ones" in said


def test_queries_of_another_folder(dsn: str, client: Client, tmp_path: Path) -> None:
    folder, documents, queries = parallel(tmp_path / "tongues")
    found = measured(dsn, folder / "de", "--queries", folder / "th", "--dims", "2048", "--storage", "halfvec")
    assert found["collections"][0]["collection"] == "tongues-de asked by tongues-th"
    expected = scores(ranked(client, documents["de"], {id: queries["th"][id] for id in GRADES}))
    assert figures(lines(found)["exact", 2048, "halfvec"]) == pytest.approx(expected)


def test_a_pool_holds_the_documents_of_all(dsn: str, client: Client, tmp_path: Path) -> None:
    folder, documents, queries = parallel(tmp_path / "tongues")
    found = measured(dsn, folder / "de", folder / "en", "--pool", "--dims", "2048", "--storage", "halfvec")
    assert [each["documents"] for each in found["tables"]] == [2 * len(DOCUMENTS)]
    pooled = {f"tongues-{name}/{id}": document for name in ("de", "en") for id, document in documents[name].items()}
    for place, name in enumerate(("de", "en")):
        grades = {query: {f"tongues-{name}/{id}": grade for id, grade in each.items()} for query, each in GRADES.items()}
        expected = scores(ranked(client, pooled, {id: queries[name][id] for id in GRADES}), grades)
        assert figures(lines(found, place)["exact", 2048, "halfvec"]) == pytest.approx(expected)


def schemas(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'nv\\_embed\\_eval%' ORDER BY 1")]


def test_nothing_is_left(dsn: str, collection: Path) -> None:
    measured(dsn, collection, "--dims", "2048", "--storage", "halfvec", "--chunk-tokens", "0,8")
    assert schemas(dsn) == []
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM nv_embed.embedding").fetchall() == [(0,)]


def test_what_was_kept_is_searched_again_without_embedding(dsn: str, collection: Path) -> None:
    options = (collection, "--dims", "2048", "--storage", "halfvec")
    first = measured(dsn, *options, "--keep")
    assert schemas(dsn) == [first["schema"]]
    again = measured(dsn, *options, "--reuse", first["schema"])
    assert (first["tables"][0]["load_s"] > 0, again["tables"][0]["load_s"]) == (True, None)
    assert [figures(line) for line in lines(again).values()] == [figures(line) for line in lines(first).values()]
    other = measured(dsn, *options, "--chunk-tokens", "8", "--reuse", first["schema"])
    assert other["tables"][0]["load_s"] > 0
    assert schemas(dsn) == [first["schema"]]


def test_a_table_for_people_and_a_picture(dsn: str, collection: Path, tmp_path: Path) -> None:
    said = succeeded(run(dsn, collection, "--dims", "2048,384", "--plot", tmp_path / "quality.png"))
    assert "things: 20 documents, 5 queries, fake" in said
    for expected in ("nDCG@10", "exact prefix", "hnsw 384 + re-score", "hnsw bit 384", "full text", "BM25", "bytes/vector", "Embedding a query"):
        assert expected in said
    assert "\x1b" not in said
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_a_dimension_that_the_model_lacks_is_refused_with_the_remedy(dsn: str, collection: Path) -> None:
    assert "nv-embed up -- --dims 100" in failed(run(dsn, collection, "--dims", "384,100"))
    assert "2048 dimensions, so they cannot be searched by 4096" in failed(run(dsn, collection, "--dims", "4096"))
    assert schemas(dsn) == []


def test_a_model_that_is_not_served_is_named(dsn: str, collection: Path) -> None:
    assert "serves no model other, only fake" in failed(run(dsn, collection, "--model", "other"))


def test_a_database_without_the_extension_is_refused(install: Install, collection: Path) -> None:
    assert "nv-embed install" in failed(run(install.dsn("postgres"), collection))


def test_documents_without_vectors_are_one_line_and_leave_nothing(dsn: str, collection: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} SET nv_embed.mode = 'off'").format(sql.Identifier(connection.info.dbname)))
    assert "20 of 20 documents of things have no vector" in failed(run(dsn, collection))
    assert schemas(dsn) == []


def test_a_schema_that_cannot_be_dropped_is_named_beside_the_results(dsn: str, collection: Path) -> None:
    refusal = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = 'lock_not_available'; END $$"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE FUNCTION refuse() RETURNS event_trigger {refusal}")
        connection.execute("CREATE EVENT TRIGGER refuse ON ddl_command_start WHEN tag IN ('DROP SCHEMA') EXECUTE FUNCTION refuse()")
    done = run(dsn, "--json", collection, "--dims", "2048", "--storage", "halfvec")
    assert json.loads(succeeded(done))["collections"]
    (left,) = schemas(dsn)
    assert f"schema {left}, with what is in it, is still there: not now" in done.stderr.splitlines()[-1]


def test_an_interrupted_evaluation_leaves_nothing(dsn: str, tmp_path: Path) -> None:
    many = {f"{id}-{n}": document for n in range(400) for id, document in DOCUMENTS.items()}
    folder = write_collection(tmp_path / "many", many)
    with Program(Path("/nowhere")).start("eval", "--database-url", dsn, str(folder), stderr=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        with psycopg.connect(dsn, autocommit=True) as connection:
            assert eventually(lambda: connection.execute("SELECT count(*) > 0 FROM nv_embed.embedding").fetchall()[0][0])
        running.send_signal(signal.SIGINT)
        said = running.stderr.read().decode()
    assert (running.returncode, len(said.splitlines())) == (130, 1), said
    assert schemas(dsn) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--dims", "many"),
        ("--dims", "0"),
        ("--storage", "halfvec,quarter"),
        ("--chunk-tokens", "-1"),
        ("--pool", "--cross"),
        ("--cross", "--chunk-tokens", "8"),
        ("--cross", "--plot", "quality.png"),
        ("--chunk-tokens", "8", "--chunk-overlap", "8"),
        ("--plot", "nowhere/quality.png"),
        ("nowhere",),
    ],
    ids=" ".join,
)
def test_wrong_usage(collection: Path, arguments: tuple[str, ...]) -> None:
    done = run("postgresql:///nowhere", collection, *arguments)
    assert done.returncode == 2, done.stderr
    assert "Error" in done.stderr
