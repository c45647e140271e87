"""
Installing into a database.

The extension's files are on the server already (`make -C extension install`); here a database gets the extension, in the version that the server has,
and learns where the sidecar is. All other DDL is in `sql/`.
"""

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

EXTENSIONS: tuple[LiteralString, ...] = ("vector", "plpython3u", "nv_embed")


class ExtensionMissing(Exception):
    """The server has no files of an extension that is needed."""


@dataclass(frozen=True)
class Installed:
    """What a database has: the extension's version, and the one it had before; None where it had none."""

    version: str
    before: str | None


def install(connection: psycopg.Connection[Any], endpoint: str | None = None) -> Installed:
    """Create or update the extension, and configure its endpoint where one is given. Doing it again changes nothing.

    Raises:
        ExtensionMissing
        psycopg.Error: the server refuses.
    """
    with connection.transaction():
        available = _versions(connection)
        for name in EXTENSIONS:
            if name not in available:
                raise ExtensionMissing(f"the server has no extension {name}")
        default, before = available["nv_embed"]
        if before is None:
            connection.execute("CREATE EXTENSION IF NOT EXISTS nv_embed CASCADE")
        elif before != default:
            connection.execute("ALTER EXTENSION nv_embed UPDATE")
        if endpoint is not None:
            connection.execute("SELECT nv_embed.configure(%s)", [endpoint])
    return Installed(default, before)


def _versions(connection: psycopg.Connection[Any]) -> dict[str, tuple[str, str | None]]:
    """By name, the version that the server would install and the one that this database has."""
    rows = connection.execute("SELECT name, default_version, installed_version FROM pg_available_extensions WHERE name = ANY(%s)", [list(EXTENSIONS)])
    return {name: (default, installed) for name, default, installed in rows}
