"""
nv_embed itself: the extension, or the library of managed PostgreSQL, by a migration.

The library is made by Alembic's migrations of its own (`nv_embed.library`), here within the transaction of the project's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass

import alembic.context
import alembic.op
import psycopg
from alembic.operations import Operations
from alembic.util import CommandError
from sqlalchemy import text

from nv_embed import library
from nv_embed.alembic.operation import Operation, connected, run
from nv_embed.install import InstallRefused
from nv_embed.sqlalchemy.embedding import quoted

SETTINGS = ("search_path", "check_function_bodies", "client_min_messages")


@Operations.register_operation("create_extension_nv_embed")
@dataclass
class CreateExtension(Operation):
    name = "create_extension_nv_embed"

    schema: str | None = None

    def reverse(self) -> "DropExtension":
        return DropExtension(self.schema)

    @classmethod
    def create_extension_nv_embed(cls, operations: Operations, schema: str | None = None) -> None:
        """Create the extension, with pgvector and PL/Python; nothing where it is there.

        Args:
            schema: for nv_search() and its companions; the first of the search_path unless given.
        """
        operations.invoke(cls(schema))


@Operations.implementation_for(CreateExtension)
def create(operations: Operations, operation: CreateExtension) -> None:
    where = "" if operation.schema is None else f" SCHEMA {quoted(operation.schema)}"
    run(operations, f"CREATE EXTENSION IF NOT EXISTS nv_embed{where} CASCADE")


@Operations.register_operation("drop_extension_nv_embed")
@dataclass
class DropExtension(Operation):
    name = "drop_extension_nv_embed"

    schema: str | None = None

    def reverse(self) -> CreateExtension:
        return CreateExtension(self.schema)

    @classmethod
    def drop_extension_nv_embed(cls, operations: Operations, schema: str | None = None) -> None:
        """Drop the extension; pgvector and PL/Python stay. The server refuses while tables are embedded.

        Args:
            schema: where it was, for the way back.
        """
        operations.invoke(cls(schema))


@Operations.implementation_for(DropExtension)
def drop(operations: Operations, operation: DropExtension) -> None:  # noqa: ARG001
    run(operations, "DROP EXTENSION IF EXISTS nv_embed")


@Operations.register_operation("install_nv_embed_library")
@dataclass
class InstallLibrary(Operation):
    name = "install_nv_embed_library"

    schema: str | None = None
    _: KW_ONLY
    endpoint: str | None = None

    def reverse(self) -> "UninstallLibrary":
        return UninstallLibrary(self.schema, endpoint=self.endpoint)

    @classmethod
    def install_nv_embed_library(cls, operations: Operations, schema: str | None = None, *, endpoint: str | None = None) -> None:
        """Install the library, or update it; what `nv-embed install --library` does, within this migration's transaction.

        Args:
            schema: for nv_search() and its companions; the one that it has, or public, unless given.
            endpoint: of a sidecar, `host:port` or `unix:/path`, which is asked for its models; on paper too.
        Raises:
            CommandError: this database cannot have it; the message says why.
        """
        operations.invoke(cls(schema, endpoint=endpoint))


@Operations.implementation_for(InstallLibrary)
def install(operations: Operations, operation: InstallLibrary) -> None:
    models = library.served(operation.endpoint)
    if operations.get_context().as_sql:
        _print(operations, library.script(operation.schema or "public", operation.endpoint, models))
        return
    connection = connected(operations)
    if not isinstance(connection.connection.driver_connection, psycopg.Connection):
        raise CommandError("the library is installed over psycopg, and this migration runs over another driver: run nv-embed install --library once")
    settings = {name: connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one() for name in SETTINGS}
    try:
        with _aside():
            library.install_within(connection, operation.schema, operation.endpoint, models)
    except InstallRefused as refused:
        raise CommandError(str(refused)) from None
    for name, value in settings.items():
        connection.execute(text("SELECT set_config(:name, :value, true)"), {"name": name, "value": value})


def _print(operations: Operations, statements: list[str]) -> None:
    for name in SETTINGS:
        run(operations, f"SELECT set_config('nv_embed.before_{name}', current_setting('{name}'), true)")
    for statement in statements:
        run(operations, statement)
    for name in SETTINGS:
        run(operations, f"SELECT set_config('{name}', current_setting('nv_embed.before_{name}'), true)")


@contextmanager
def _aside() -> Iterator[None]:
    """Alembic's modules `context` and `op` speak for one migration at a time: what runs within another gives them back."""
    outer = [module._proxy for module in (alembic.context, alembic.op) if module._proxy is not None]
    try:
        yield
    finally:
        for proxy in outer:
            proxy._install_proxy()


@Operations.register_operation("uninstall_nv_embed_library")
@dataclass
class UninstallLibrary(Operation):
    name = "uninstall_nv_embed_library"

    schema: str | None = None
    _: KW_ONLY
    endpoint: str | None = None

    def reverse(self) -> InstallLibrary:
        return InstallLibrary(self.schema, endpoint=self.endpoint)

    @classmethod
    def uninstall_nv_embed_library(cls, operations: Operations, schema: str | None = None, *, endpoint: str | None = None) -> None:
        """Remove the library; pgvector stays, and so do tables and their columns.

        Args:
            schema, endpoint: what it had, for the way back.
        Raises:
            DBAPIError: tables are embedded still.
        """
        operations.invoke(cls(schema, endpoint=endpoint))


@Operations.implementation_for(UninstallLibrary)
def uninstall(operations: Operations, operation: UninstallLibrary) -> None:  # noqa: ARG001
    run(operations, library.uninstall_sql())
