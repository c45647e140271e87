"""
The SQL of the evaluation: a file each, with the names of tables put in.
"""

from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]


def statement(name: str, **names: sql.Composable) -> sql.Composed:
    """Of the file with this name."""
    return sql.SQL(_text(name)).format(**names)


def plain(name: str) -> sql.SQL:
    """Of a file without names to put in."""
    return sql.SQL(_text(name))


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(f"{name}.sql").read_text()
