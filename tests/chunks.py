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


def embed(db: "psycopg.Connection[Any]", client: Client, tokens: int = TOKENS, overlap: int = OVERLAP) -> None:
    """What a worker does with the jobs of chunked tables, in this connection's transaction."""
    for (generation,) in db.execute("SELECT id FROM nv_embed.generation WHERE chunks IS NOT NULL").fetchall():
        while jobs := db.execute("SELECT key, id FROM nv_embed.claim(ARRAY[%s::bigint], 100, '1 hour')", [generation]).fetchall():
            keys, ids = [key for key, _ in jobs], [id for _, id in jobs]
            read = db.execute("SELECT place, text, digest FROM nv_embed.read(%s, %s, 10000000)", [generation, keys]).fetchall()
            found = {place: (text, digest) for place, text, digest in read}
            pieces = [
                (place, piece.start_char, piece.end_char, text[piece.start_char : piece.end_char])
                for place, (text, _) in found.items()
                if text is not None
                for piece in client.chunk(text, tokens, overlap=overlap)
            ]
            digests = [found.get(place, (None, None))[1] for place in range(1, len(keys) + 1)]
            vectors = [str(vector.tolist()) for vector in client.embed([passage for *_, passage in pieces], dim=384)]
            db.execute(
                "SELECT nv_embed.write_back_chunks(%s, %s, %s::bigint[], %s::bytea[], %s::int[], %s::int[], %s::int[], %s::text[])",
                [generation, keys, ids, digests, *([piece[column] for piece in pieces] for column in range(3)), vectors],
            )


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
