"""
What a chunk table has to hold, checked against the sidecar.
"""

import re
from collections.abc import Sequence
from typing import Any

import psycopg
from vectors import cosine, parsed

from nv_embed.client import Client

TOKENS, OVERLAP = 20, 4


def prose(words: int, about: str) -> str:
    """A text of so many words, no two of them alike."""
    return " ".join(f"{about}{n}" for n in range(words))


def in_step(
    db: "psycopg.Connection[Any]", client: Client, table: str = "docs", key: Sequence[str] = ("id",), text: str = "concat(title, ': ', body)"
) -> int:
    """How many pieces there are; fails unless they are just those of the table's present texts, with their vectors."""
    keys = ", ".join(f"{column}::text" for column in key)
    rows = db.execute(f"SELECT ARRAY[{keys}], {text}, concat({', '.join(re.findall('[a-z]+', text.replace('concat', '')))}) FROM {table}").fetchall()
    expected: dict[tuple[Any, ...], str] = {}
    for row_key, row_text, content in rows:
        if content.strip():
            for seq, piece in enumerate(client.chunk(row_text, TOKENS, overlap=OVERLAP)):
                expected[(*row_key, seq, piece.start_char, piece.end_char)] = row_text[piece.start_char : piece.end_char]
    stored = {
        (*row_key, *place): vector
        for row_key, *place, vector in db.execute(
            f"SELECT ARRAY[{keys}], seq, start_char, end_char, embedding::text FROM {table}_embedding_chunk"
        ).fetchall()
    }
    assert sorted(stored) == sorted(expected)
    for (place, passage), vector in zip(
        sorted(expected.items()), client.embed([passage for _, passage in sorted(expected.items())], dim=384), strict=True
    ):
        assert cosine(parsed(stored[place]), vector) > 0.9999, (place, passage)
    return len(stored)
