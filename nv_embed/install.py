"""
Installing into a database.

The extension's files are on the server already (`make -C extension install`); here a database gets the extension, in the version that the server has,
and learns where the sidecar is. All other DDL is in `sql/`.
"""

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg

EXTENSIONS: tuple[LiteralString, ...] = ("vector", "plpython3u", "nv_embed")


class InstallRefused(Exception):
    """This database cannot have the install that was asked for; the message says why and what to do."""


class ExtensionMissing(InstallRefused):
    """The server has no files of an extension that is needed."""


@dataclass(frozen=True)
class Installed:
    """What a database has: the extension's version, and the one it had before; None where it had none."""

    version: str
    before: str | None


def install(connection: psycopg.Connection[Any], endpoint: str | None = None) -> Installed:
    """Create or update the extension, and configure its endpoint where one is given. Doing it again changes nothing.

    Raises:
        InstallRefused
        psycopg.Error: the server refuses.
    """
    with connection.transaction():
        available = _versions(connection)
        for name in EXTENSIONS:
            if name not in available:
                raise ExtensionMissing(f"the server has no extension {name}")
        default, before = available["nv_embed"]
        if before is None:
            _refuse_library(connection)
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


def _refuse_library(connection: psycopg.Connection[Any]) -> None:
    found = connection.execute("SELECT to_regclass('nv_embed.installation') IS NOT NULL").fetchone()
    if found == (True,):
        raise InstallRefused(
            "this database has the library install of nv_embed: give --library to update it; for the extension, remove it first (docs/operations.md)"
        )
