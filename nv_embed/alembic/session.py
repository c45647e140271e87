"""
Connections beside the migration's own.

Whoever waits for workers, or watches an index being built, needs two connections of psycopg's that nothing else uses. They are made like the one
that the migration runs in: to the same server, as the same role, with the settings that it has set for its session.

In:  a migration, over whatever driver      Out: two connections in autocommit mode
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic.operations import Operations
from alembic.util import CommandError
from psycopg.conninfo import make_conninfo

from nv_embed.alembic.operation import ask, connected

Connection = psycopg.Connection[Any]

URL = "nv_embed_url"

SETTINGS = "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session' AND context IN ('user', 'superuser')"


@contextmanager
def pair(operations: Operations) -> Iterator[tuple[Connection, Connection]]:
    conninfo = _conninfo(operations)
    with _open(operations, conninfo) as connection, _open(operations, conninfo) as watching:
        yield connection, watching


def _open(operations: Operations, conninfo: str) -> Connection:
    connection = psycopg.connect(conninfo, autocommit=True)
    for name, setting in ask(operations, SETTINGS).all():
        connection.execute("SELECT set_config(%s, %s, false)", [name, setting])
    role = ask(operations, "SELECT current_setting('role')").scalar_one()
    if role != "none":
        connection.execute("SELECT set_config('role', %s, false)", [role])
    return connection


def _conninfo(operations: Operations) -> str:
    """Where the migration runs, for libpq.

    Raises:
        CommandError: the engine's URL does not say it.
    """
    given = operations.get_context().opts.get(URL)
    if given is not None:
        return str(given)
    driver = connected(operations).connection.driver_connection
    if isinstance(driver, psycopg.Connection | psycopg.AsyncConnection):
        return make_conninfo("", **{**driver.info.get_parameters(), "password": driver.info.password or None})
    url = connected(operations).engine.url
    options = {name: str(value) for name, value in url.query.items()}
    try:
        return make_conninfo("", **url.translate_connect_args(username="user", database="dbname"), **options)
    except psycopg.ProgrammingError as error:
        raise CommandError(
            f"a second connection is needed, and the engine's URL does not say how to make one ({error}): "
            f"give context.configure in env.py a {URL}='postgresql://…'"
        ) from None
