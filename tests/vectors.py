"""
Reading and comparing vectors in tests.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy
import psycopg
from numpy.typing import NDArray

from nv_embed.client import Client


def parsed(text: str | None) -> "NDArray[numpy.float64] | None":
    """A vector or halfvec as Postgres prints it."""
    return None if text is None else numpy.array(json.loads(text))


def one(connection: "psycopg.Connection[Any]", query: str, parameters: Sequence[Any] = ()) -> Any:
    """The only value of a query."""
    row = connection.execute(query, parameters or None).fetchone()
    assert row is not None
    return row[0]


def cosine(a: Any, b: Any) -> float:
    a, b = numpy.asarray(a, float), numpy.asarray(b, float)
    return float(a @ b / (numpy.linalg.norm(a) * numpy.linalg.norm(b)))


def question(client: Client, text: str) -> str:
    """A question's vector, as Postgres reads it."""
    return str(client.embed([text], dim=384, input_type="query")[0].tolist())
