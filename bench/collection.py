"""
Test collections in BEIR's layout.

In:  a folder with corpus.jsonl, queries.jsonl (each may end in .gz) and qrels/SPLIT.tsv      Out: a `Collection`
"""

import csv
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LANGUAGE_CHARS = 2


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        documents: title and text by id.
        queries: those of the split, by id.
        grades: how relevant each judged document is to a query; documents that are not named are not.
    """

    name: str
    documents: Mapping[str, tuple[str, str]]
    queries: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]

    def passages(self) -> list[str]:
        """The documents as they are embedded: title, space, text."""
        return [f"{title} {text}".strip() for title, text in self.documents.values()]


def read(folder: Path, split: str = "test") -> Collection:
    grades: dict[str, dict[str, int]] = {}
    with (folder / "qrels" / f"{split}.tsv").open(newline="") as file:
        for query, document, grade in list(csv.reader(file, delimiter="\t"))[1:]:
            grades.setdefault(query, {})[document] = int(grade)
    return Collection(
        called(folder),
        {each["_id"]: (each.get("title", ""), each["text"]) for each in lines(folder / "corpus.jsonl")},
        {each["_id"]: each["text"] for each in lines(folder / "queries.jsonl") if each["_id"] in grades},
        grades,
    )


def called(folder: Path) -> str:
    """The folder's name; one that is called by a language's code has its parent's name in front."""
    whole = folder.resolve()
    return f"{whole.parent.name}-{whole.name}" if len(whole.name) == LANGUAGE_CHARS else whole.name


def lines(file: Path) -> Iterator[dict[str, str]]:
    packed = file.with_name(file.name + ".gz")
    with gzip.open(packed, "rt", encoding="utf-8") if packed.exists() else file.open(encoding="utf-8") as rows:
        for row in rows:
            yield json.loads(row)
