"""
Vectors between Python and pgvector, in its text form.

In Python a vector is a list of floats, whichever pgvector-python is installed: of its versions some give lists, some arrays of NumPy's, some objects
of their own. orjson writes and reads the text, since a vector has thousands of numbers and a flush hundreds of vectors.

In:  lists, arrays      Out: `[0.1,0.2]` for Postgres, and back
"""

from typing import Any

import orjson


def written(value: Any) -> str | None:
    """A vector in text form.

    Args:
        value: a list or an array of numbers, an object of pgvector-python's, or the text itself.
    """
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, "to_list"):
        value = value.to_list()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    return orjson.dumps(value, default=list).decode()


def read(value: Any) -> list[float] | None:
    """A vector as a driver gives it: as text, or as what an adapter that was registered with it makes of that."""
    if value is None:
        return None
    return [float(number) for number in orjson.loads(written(value) or "null")]


def short(row: Any) -> list[float]:
    """A vector of single precision with as few digits as tell its numbers apart; as doubles they are written with twice as many.

    Args:
        row: [dim] float32, of NumPy's.
    """
    numbers: list[float] = orjson.loads(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))
    return numbers
