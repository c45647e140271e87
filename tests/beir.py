"""
Small collections in BEIR's layout, written for tests.
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCUMENTS = {
    "d01": ("Dynamo", "The first dynamo was built by an instrument maker who turned a magnet beside two coils of wire."),
    "d02": ("Bread", "Bread rises because yeast eats sugar and makes gas, which the dough holds in small holes."),
    "d03": ("Violin", "A violin has four strings tuned in fifths, and a bow of horse hair makes them sound."),
    "d04": ("Sundial", "The shadow of a stick tells the hour as long as the sun shines on the dial."),
    "d05": ("Kite", "A kite flies in a steady wind when its line is held and its tail keeps it upright."),
    "d06": ("Soap", "Soap is made of fat and lye, and it takes grease off the hands because it binds both oil and water."),
    "d07": ("Compass", "The needle of a compass is a magnet that points to the north, wherever the ship sails."),
    "d08": ("Cheese", "Cheese ripens for months in a cool cellar, where mould makes its rind and its taste."),
    "d09": ("Bicycle", "A bicycle stays upright as it rolls because its rider steers into each fall."),
    "d10": ("Lighthouse", "A lighthouse warns ships of rocks by night with a lamp behind a large lens."),
    "d11": ("Paper", "Paper is made of fibres of wood that were cooked, beaten, and spread on a sieve."),
    "d12": ("Bees", "Bees dance in the dark hive to tell each other where the flowers are."),
    "d13": ("Glass", "Glass is sand that was melted with soda and lime, and cooled before it could form crystals."),
    "d14": ("Tides", "The tides rise and fall twice a day because the moon pulls at the water of the sea."),
    "d15": ("Ink", "Ink for a quill was made of oak galls, iron and gum, and it darkened as it dried."),
    "d16": ("Piano", "A piano strikes its strings with hammers of felt, and a pedal lets them sound on."),
    "d17": ("Windmill", "The cap of a windmill turns until its sails face the wind that grinds the grain."),
    "d18": ("", "An untitled note about yeast, flour and the warm place where dough is left to rise."),
    "d19": ("Magnet", "A magnet that is heated until it glows loses its pull on iron."),
    "d20": ("Cellar", "In a cellar the wine keeps at one temperature through summer and winter."),
}

QUERIES = {
    "q1": "why does bread dough rise with yeast",
    "q2": "which instruments have strings that sound",
    "q3": "what does a magnet do to iron",
    "q4": "what is kept in a cool cellar",
    "q5": "how is the hour told by a shadow",
    "unjudged": "a question that nobody has answered",
}

GRADES = {
    "q1": {"d02": 2, "d18": 1},
    "q2": {"d03": 1, "d16": 1},
    "q3": {"d19": 2, "d07": 1, "d01": 1, "d05": 0},
    "q4": {"d08": 1, "d20": 1},
    "q5": {"d04": 1},
}


def write_collection(
    folder: Path,
    documents: Mapping[str, tuple[str, str]] = DOCUMENTS,
    queries: Mapping[str, str] = QUERIES,
    grades: Mapping[str, Mapping[str, int]] = GRADES,
    *,
    packed: bool = False,
    split: str = "test",
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write_lines(folder / "corpus.jsonl", [{"_id": id, "title": title, "text": text} for id, (title, text) in documents.items()], packed)
    write_lines(folder / "queries.jsonl", [{"_id": id, "text": text} for id, text in queries.items()], packed)
    judged = [f"{query}\t{document}\t{grade}" for query, each in grades.items() for document, grade in each.items()]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


def write_lines(file: Path, rows: Sequence[Mapping[str, str]], packed: bool) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if packed:
        with gzip.open(f"{file}.gz", "wt", encoding="utf-8") as out:
            out.write(text)
    else:
        file.write_text(text, encoding="utf-8")
