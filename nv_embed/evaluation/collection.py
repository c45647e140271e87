"""
Test collections in BEIR's layout.

In:  a folder with corpus.jsonl, queries.jsonl (each may end in .gz) and qrels/SPLIT.tsv      Out: a `Collection`
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nv_embed.evaluation import languages
from nv_embed.evaluation.errors import EvaluationFailed


class Document(NamedTuple):
    title: str
    text: str
    language: str = languages.DEFAULT

    def passage(self) -> str:
        """What is embedded of it, and what is searched by words: title, space, text."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        documents: by id.
        queries: those of the split, by id.
        grades: how relevant each judged document is to a query; documents that are not named are not.
        language: of the documents, as a code of two letters.
    """

    name: str
    documents: Mapping[str, Document]
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]
    language: str = languages.DEFAULT

    def passages(self) -> list[str]:
        return [document.passage() for document in self.documents.values()]

    def first(self, count: int) -> "Collection":
        """The same with so many queries at most."""
        return replace(self, queries=dict(islice(self.queries.items(), count)))

    def asked_by(self, name: str, queries: Mapping[str, str]) -> "Collection":
        """The same documents with another collection's queries: equal ids ask for the same."""
        common = {id: text for id, text in queries.items() if id in self.grades}
        if not common:
            raise EvaluationFailed(f"no query of {name} has the id of one of {self.name}, so none has a known answer there: use parallel collections")
        return replace(self, name=f"{self.name} asked by {name}", queries=common)


def read(folder: Path, split: str = "test") -> Collection:
    """Read a collection.

    Raises:
        EvaluationFailed: the folder has not what a collection has.
    """
    name, language = called(folder), language_of(folder)
    grades = read_grades(folder, split)
    return Collection(
        name,
        {each["_id"]: Document(each.get("title") or "", each["text"], language) for each in lines(folder / "corpus.jsonl")},
        {id: text for id, text in read_queries(folder).items() if id in grades},
        grades,
        language,
    )


def read_queries(folder: Path) -> dict[str, str]:
    """Every split's."""
    return {each["_id"]: each["text"] for each in lines(folder / "queries.jsonl")}


def read_grades(folder: Path, split: str) -> dict[str, dict[str, int]]:
    file = folder / "qrels" / f"{split}.tsv"
    if not file.is_file():
        others = sorted(each.stem for each in file.parent.glob("*.tsv"))
        raise EvaluationFailed(f"{folder} has no qrels/{split}.tsv: " + (f"its splits are {', '.join(others)}" if others else NO_LAYOUT))
    grades: dict[str, dict[str, int]] = {}
    with file.open("rb") as rows:
        for number, row in enumerate(rows, 1):
            if not row.strip():
                continue
            try:
                query, document, said = row.decode().rstrip("\r\n").split("\t")
                if number == 1 and not _is_number(said):  # the columns' names, which some leave out
                    continue
                grades.setdefault(query, {})[document] = _grade(said)
            except ValueError:
                columns = "query-id, corpus-id and score, a whole number, with tabs between and as UTF-8"
                raise EvaluationFailed(f"line {number} of {file} is not {columns}") from None
    return grades


def _is_number(said: str) -> bool:
    try:
        float(said)
    except ValueError:
        return False
    return True


def _grade(said: str) -> int:
    grade = float(said)
    if not grade.is_integer():
        raise ValueError(said)
    return int(grade)


NO_LAYOUT = "a collection is a folder with corpus.jsonl, queries.jsonl (each may end in .gz) and qrels/test.tsv, as BEIR has them"


def lines(file: Path) -> Iterator[dict[str, str]]:
    """Its objects, each with `_id` and `text`.

    Raises:
        EvaluationFailed: there is no such file, or a line that is something else.
    """
    packed = file.with_name(file.name + ".gz")
    if not (packed.is_file() or file.is_file()):
        raise EvaluationFailed(f"{file.parent} has no {file.name}: {NO_LAYOUT}")
    with gzip.open(packed) if packed.is_file() else file.open("rb") as rows:
        for number, row in enumerate(rows, 1):
            if not row.strip():
                continue
            try:
                said = json.loads(row)
            except ValueError as error:
                raise EvaluationFailed(f"line {number} of {file} is not JSON: {error}") from None
            if not (isinstance(said, dict) and isinstance(said.get("_id"), str) and isinstance(said.get("text"), str)):
                raise EvaluationFailed(f"line {number} of {file} is no object with _id and text, both strings")
            yield said


def is_collection(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("corpus.jsonl", "corpus.jsonl.gz"))


def folders(folder: Path) -> list[Path]:
    """The folder itself or, of one that holds collections, each of these."""
    inside = [] if is_collection(folder) else sorted(each for each in folder.iterdir() if each.is_dir() and is_collection(each))
    return inside or [folder]


def called(folder: Path) -> str:
    """The folder's name; one that is called by a language's code has its parent's name in front."""
    whole = folder.resolve()
    return f"{whole.parent.name}-{whole.name}" if languages.is_language(whole.name) else whole.name


def language_of(folder: Path) -> str:
    whole = folder.resolve()
    return whole.name if languages.is_language(whole.name) else languages.DEFAULT


def pool(collections: Sequence[Collection]) -> list[Collection]:
    """The collections over the documents of all of them; an id has its collection's name in front."""
    documents = {f"{each.name}/{id}": document for each in collections for id, document in each.documents.items()}
    return [
        replace(
            each,
            documents=documents,
            grades={query: {f"{each.name}/{id}": grade for id, grade in grades.items()} for query, grades in each.grades.items()},
        )
        for each in collections
    ]
