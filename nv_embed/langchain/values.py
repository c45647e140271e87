"""
Values of Python's as JSON, for Postgres to read.

In:  what metadata and filters have      Out: text
"""

import json
import re
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from nv_embed.errors import InvalidInput

NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def plain(value: Any) -> Any:
    """A moment, a UUID or a decimal number as its text, as they are stored; others as they are."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, UUID | Decimal) else value


def written(value: Any, of: str) -> str:
    """JSON.

    Args:
        of: what it is, for the error.
    Raises:
        InvalidInput: JSON has no such value, or Postgres no such text.
    """

    def unknown(each: Any) -> Any:
        if plain(each) is each:
            raise TypeError(f"{type(each).__name__} is no type of JSON's")
        return plain(each)

    try:
        text = json.dumps(value, default=unknown, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(
            f"{of} cannot be written as JSON: {error}", hint="give texts, numbers, booleans, None, moments, lists and dictionaries"
        ) from None
    if NUL.search(text):
        raise _nul(of)
    return checked(text, of)


def checked(text: str, of: str) -> str:
    """A text that Postgres can take. Raises InvalidInput for another."""
    if "\0" in text:
        raise _nul(of)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{of} is no Unicode text: {error}", hint="read it with the right encoding") from None
    return text


def _nul(of: str) -> InvalidInput:
    return InvalidInput(f"{of} has a NUL character, which no text of Postgres's can have", hint="take it out")
