"""
Collections as they are read.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from beir import DOCUMENTS, GRADES, QUERIES, write_collection

from nv_embed.evaluation import tasks
from nv_embed.evaluation.collection import Document, called, folders, language_of, pool, read, read_queries
from nv_embed.evaluation.errors import EvaluationFailed


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_documents_queries_with_an_answer_and_grades(tmp_path: Path, packed: bool) -> None:
    collection = read(write_collection(tmp_path / "things", packed=packed))
    assert (collection.name, collection.language) == ("things", "en")
    assert {id: (each.title, each.text) for id, each in collection.documents.items()} == DOCUMENTS
    assert set(collection.queries) == set(GRADES)
    assert collection.grades == GRADES


def test_a_passage_is_title_space_text() -> None:
    assert Document("Dynamo", "turns").passage() == "Dynamo turns"
    assert Document("", "turns").passage() == "turns"


def test_a_quotation_mark_in_an_id_is_a_letter(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "things", {'a"b': ("", "text")}, {"q": "text"}, {"q": {'a"b': 1}})
    assert read(folder).grades == {"q": {'a"b': 1}}


def test_a_folder_called_by_its_language_is_called_by_its_parent_too(tmp_path: Path) -> None:
    assert [called(tmp_path / name) for name in ("scifact", "several/en", "nq")] == ["scifact", "several-en", "nq"]
    assert [language_of(tmp_path / name) for name in ("several/zh", "nq")] == ["zh", "en"]


def test_a_folder_of_collections_stands_for_them(tmp_path: Path) -> None:
    inside = [write_collection(tmp_path / name) for name in ("de", "en")]
    (tmp_path / "notes").mkdir()
    assert folders(tmp_path) == inside
    assert folders(inside[0]) == [inside[0]]


def test_another_split(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "things", split="train")
    assert len(read(folder, "train").queries) == len(GRADES)
    with pytest.raises(EvaluationFailed, match="its splits are train"):
        read(folder)


def test_a_folder_that_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(EvaluationFailed, match=r"a collection is a folder with corpus\.jsonl"):
        read(tmp_path)


def test_a_line_that_is_not_json(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "things")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(EvaluationFailed, match=f"line {len(DOCUMENTS) + 1} of "):
        read(folder)


@pytest.mark.parametrize("row", ['{"text": "no id"}', '{"_id": "d99"}', '{"_id": 99, "text": "a number"}', '{"_id": "d99", "text": null}', '["d99"]'])
def test_a_line_without_id_or_text(tmp_path: Path, row: str) -> None:
    folder = write_collection(tmp_path / "things")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(EvaluationFailed, match=rf"line {len(DOCUMENTS) + 1} of .*corpus\.jsonl"):
        read(folder)


def test_a_line_that_is_not_utf_8(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "things")
    with (folder / "corpus.jsonl").open("ab") as file:
        file.write('{"_id": "d99", "text": "K\u00e4se"}\n'.encode("latin-1"))
    with pytest.raises(EvaluationFailed, match=rf"line {len(DOCUMENTS) + 1} of .*corpus\.jsonl"):
        read(folder)


def test_empty_lines_say_nothing(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "things")
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        with (folder / name).open("a") as file:
            file.write("\n  \n")
    collection = read(folder)
    assert (len(collection.documents), collection.grades) == (len(DOCUMENTS), GRADES)


def judge(folder: Path, judgements: str) -> Path:
    (folder / "qrels/test.tsv").write_bytes(judgements.encode())
    return folder


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"], ids=["without", "with"])
def test_no_judgement_is_lost_whether_or_not_columns_have_names(tmp_path: Path, header: str) -> None:
    folder = judge(write_collection(tmp_path / "things"), f"{header}q1\td02\t2\r\nq1\td18\t1.0\n")
    assert read(folder).grades == {"q1": {"d02": 2, "d18": 1}}


@pytest.mark.parametrize("row", ["q1\t0\td02\t1", "q1 d02 1", "q1\td02", "q1\td02\t0.5", "q1\td02\thigh", "q1\td02\tnan"])
def test_a_judgement_that_cannot_be_read_is_named(tmp_path: Path, row: str) -> None:
    folder = judge(write_collection(tmp_path / "things"), f"query-id\tcorpus-id\tscore\nq1\td02\t1\n{row}\n")
    with pytest.raises(EvaluationFailed, match=r"line 3 of .*test\.tsv is not query-id, corpus-id and score"):
        read(folder)


def test_queries_of_another_are_those_with_an_id_in_common(tmp_path: Path) -> None:
    collection = read(write_collection(tmp_path / "things"))
    asked = collection.asked_by("others", {"q1": "anders gefragt", "unjudged": "nichts", "more": "mehr"})
    assert (asked.name, dict(asked.queries)) == ("things asked by others", {"q1": "anders gefragt"})
    with pytest.raises(EvaluationFailed, match="no query of others"):
        collection.asked_by("others", {"more": "mehr"})
    assert read_queries(tmp_path / "things") == QUERIES


def test_a_pool_tells_equal_ids_apart(tmp_path: Path) -> None:
    pooled = pool([read(write_collection(tmp_path / name)) for name in ("one", "two")])
    assert all(set(each.documents) == {f"{name}/{id}" for name in ("one", "two") for id in DOCUMENTS} for each in pooled)
    assert pooled[1].grades["q5"] == {"two/d04": 1}


def task(**about: Any) -> SimpleNamespace:
    """What the package mteb gives, as far as it is looked at."""
    return SimpleNamespace(
        load_data=lambda: None, convert_v1_dataset_format_to_v2=lambda: None, metadata=SimpleNamespace(languages=["deu-Latn"]), **about
    )


def test_a_task_of_mteb_is_a_collection_too() -> None:
    data = {
        "corpus": [{"id": "d", "title": None, "text": "Brot"}],
        "queries": [{"id": "q", "text": "was ist Brot"}, {"id": "unjudged", "text": "nichts"}],
        "relevant_docs": {"q": {"d": 1}},
    }
    collection = tasks.from_task("Brote", data, "de")
    assert (dict(collection.documents), dict(collection.queries), collection.grades) == (
        {"d": Document("", "Brot", "de")},
        {"q": "was ist Brot"},
        {"q": {"d": 1}},
    )


def test_a_task_without_the_package_says_what_is_missing() -> None:
    pytest.importorskip("nv_embed.evaluation.tasks")
    try:
        import mteb  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(EvaluationFailed, match="Python package mteb"):
            tasks.read_task("SciFact", "test")
    else:
        pytest.skip("mteb is installed here")


@pytest.mark.parametrize(
    ("dataset", "said"),
    [({"deu": {}, "fra": {}}, "only tasks of one language"), ({"default": {"train": {}}}, "its splits are train"), (None, "could not be fetched")],
)
def test_a_task_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, dataset: Any, said: str) -> None:
    def get_task(name: str) -> SimpleNamespace:
        if dataset is None:
            raise KeyError(name)
        return task(dataset=dataset)

    monkeypatch.setitem(__import__("sys").modules, "mteb", SimpleNamespace(get_task=get_task))
    with pytest.raises(EvaluationFailed, match=said):
        tasks.read_task("Brote", "test")
