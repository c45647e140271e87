"""
Databases with nv_embed, by either way to install it.

The extension's belongs to a superuser. The library's belongs to an ordinary role that connects as itself, and has no PL/Python: whatever passes there
needs neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import psycopg
import pytest
from psycopg import sql
from servers import Sidecar

from nv_embed import library
from nv_embed.client import Client
from nv_embed.cluster import SUPERUSER, Cluster

OWNER = "installer"

EXTENSION = pytest.mark.installs("extension")
LIBRARY = pytest.mark.installs("library")
BOTH = pytest.mark.installs("extension", "library")
"""For tests of what both installs do alike. A test's own mark goes before its module's."""


@dataclass(frozen=True)
class Install:
    """A way to install, and databases that have it.

    Attributes:
        template: configured, and never changed.
        rollback: a copy for the tests that roll back.
        owner: who owns them.
    """

    kind: str
    template: str
    rollback: str
    owner: str
    cluster: Cluster

    def dsn(self, database: str, user: str | None = None) -> str:
        user = user or self.owner
        return self.cluster.dsn(database) if user == SUPERUSER else self.cluster.dsn(database, user=user, password=user)

    def copy(self, name: str) -> None:
        with self.cluster.connect() as connection:
            statement = "CREATE DATABASE {} TEMPLATE {} OWNER {}"
            connection.execute(sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(self.template), sql.Identifier(self.owner)))


def installs(cluster: Cluster, sidecar: Sidecar) -> Callable[[str], Install]:
    """Makes each kind once."""

    @cache
    def install(kind: str) -> Install:
        owner = {"extension": SUPERUSER, "library": OWNER}[kind]
        made = Install(kind, f"{kind}_template", f"{kind}_rollback", owner, cluster)
        make_role(cluster, "app")
        if kind == "extension":
            _install_extension(made, sidecar)
        else:
            install("extension")  # makes the server's roles, to which the library then grants too, whichever test comes first
            library_database(cluster, made.template)
            install_library(made.dsn(made.template), sidecar.address)
        with cluster.connect(made.template) as connection:
            connection.execute("GRANT CREATE ON SCHEMA public TO app")
        made.copy(made.rollback)
        return made

    return install


def _install_extension(made: Install, sidecar: Sidecar) -> None:
    made.cluster.create_database(made.template)
    with made.cluster.connect(made.template) as connection:
        connection.execute("CREATE EXTENSION nv_embed CASCADE")
        connection.execute("SELECT nv_embed.configure(%s)", [sidecar.address])


def library_database(cluster: Cluster, name: str) -> None:
    """A database as a managed service gives it: an ordinary role's, with pgvector, which a superuser has put there."""
    make_role(cluster, OWNER)
    with cluster.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(OWNER)))
    with cluster.connect(name) as connection:
        connection.execute("CREATE EXTENSION vector")


def install_library(dsn: str, endpoint: str | None = None, schema: str | None = None) -> library.InstalledLibrary:
    models: Sequence[Any] = ()
    if endpoint is not None:
        with Client(endpoint) as client:
            models = client.list_models()
    return library.install(psycopg.connect(dsn), schema, endpoint, models)


def make_role(cluster: Cluster, name: str) -> None:
    """A role that may log in and nothing else, with its name for a password."""
    with cluster.connect() as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone():
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEROLE PASSWORD {}").format(sql.Identifier(name), sql.Literal(name)))
