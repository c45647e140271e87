"""
What a database has of nv_embed, by description and not by oid: two databases that say the same are the same, however they came to it.
"""

from pathlib import Path
from typing import Any

import psycopg

QUERY = Path(__file__).with_name("catalog.sql").read_text()


def described(connection: "psycopg.Connection[Any]") -> dict[str, str]:
    """Descriptions by kind and name."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        cursor = connection.execute(QUERY.encode())
        while cursor.nextset():
            pass
        found = {f"{kind} {name}": text or "" for kind, name, text in cursor}
    assert len(found) > 200
    return found


def differences(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """What is not the same, in lines that a reader can act upon."""
    return [
        *(f"only in the first: {name}" for name in sorted(first.keys() - second.keys())),
        *(f"only in the second: {name}" for name in sorted(second.keys() - first.keys())),
        *(f"{name}\n{first[name]}\nin the second:\n{second[name]}" for name in sorted(first) if second.get(name, first[name]) != first[name]),
    ]
