"""
The library install: the schema by Alembic's migrations, for databases without PL/Python or a superuser.

What holds data is made by the revisions in `migrations/`, each once; what holds code is made anew after them, where any of it has changed. All of it
is one transaction, and all DDL is in `sql/`: the same files that the extension is made of, but for those that `sql/order` leaves to one of the two.

In:  a connection of whoever is to own the schema      Out: a database with the schema nv_embed
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy.pool import NullPool

from nv_embed import __version__
from nv_embed.install import InstallRefused

if TYPE_CHECKING:
    from nv_embed.proto.nv_embed_pb2 import Model

OLDEST_SERVER = 15
OLDEST_PGVECTOR = (0, 8)
FIRST_REVISION = "0.2.0"
VERSION_TABLE = "nv_embed.alembic_version"


@dataclass(frozen=True)
class InstalledLibrary:
    """What a database has.

    Attributes:
        before: the version it had; None where it had none.
        schema: where nv_search() is.
        has_changed: whether anything but the models is new.
        changed_models: how many models are not what they were.
        has_worker_role: whether there is a role nv_embed_worker.
    """

    version: str
    before: str | None
    schema: str
    has_changed: bool
    changed_models: int
    has_worker_role: bool


def install(
    connection: psycopg.Connection[Any], schema: str | None = None, endpoint: str | None = None, models: "Sequence[Model]" = ()
) -> InstalledLibrary:
    """Install or update, and close the connection. Doing it again changes nothing; where it fails, nothing has changed.

    Args:
        connection: not in autocommit mode, with no transaction begun.
        schema: for nv_search() and nv_truncate(); the one that it has, or public, unless given.
        endpoint, models: of a sidecar, its default model first.
    Raises:
        InstallRefused, psycopg.Error
    """
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: connection, poolclass=NullPool)
    try:
        with engine.begin() as bind:
            return install_within(bind, schema, endpoint, models)
    except sqlalchemy.exc.DBAPIError as error:
        raise error.orig or error from None
    finally:
        engine.dispose()


def install_within(
    bind: sqlalchemy.Connection, schema: str | None = None, endpoint: str | None = None, models: "Sequence[Model]" = ()
) -> InstalledLibrary:
    """Install or update, in a transaction that the caller has begun and ends. What it sets for the transaction is search_path and the like.

    Args:
        bind: of psycopg's.
    The others, and what is raised, are `install`'s.
    """
    connection = _driver(bind)
    _ask(connection, "SELECT pg_advisory_xact_lock(hashtext('nv_embed.install'))")
    before = _installed(connection)
    schema = _chosen_schema(connection, schema, before)
    _prepare_session(connection, schema)
    _upgrade(bind, schema)
    has_changed = before is None or before[0] != __version__ or before[2] != _digest(schema)
    changed_models = _configure(connection, endpoint, models)
    has_role = _ask(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nv_embed_worker')")
    return InstalledLibrary(__version__, before and before[0], schema, has_changed, changed_models, has_role)


def script(schema: str, endpoint: str | None = None, models: "Sequence[Model]" = ()) -> list[str]:
    """The statements of a first install, for a session of its owner's with a transaction begun; pgvector comes with it where it is not there."""
    revisions = [each.revision for each in ScriptDirectory(str(_folder("migrations"))).walk_revisions()][::-1]
    quoted = sql.Identifier(schema).as_string(None)
    return [
        "CREATE EXTENSION IF NOT EXISTS vector",
        f"""SELECT set_config('search_path', concat_ws(', ', {_literal(quoted)}, (
    SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'
), 'pg_temp'), true), set_config('check_function_bodies', 'off', true), set_config('client_min_messages', 'warning', true)""",  # noqa: S608  # of literals
        _rendered(_folder("sql") / "schema" / "namespace.sql", schema),
        f"CREATE TABLE {VERSION_TABLE} (version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))",
        *(_rendered(file, schema) for revision in revisions for file in _data(revision)),
        f"INSERT INTO {VERSION_TABLE} VALUES ({_literal(revisions[-1])})",  # noqa: S608
        _code(schema),
        f"SELECT nv_embed.record_installation({_literal(__version__)}, {_literal(schema)}, {_literal(_digest(schema))})",
        *([] if endpoint is None else [f"SELECT nv_embed.configure({_literal(endpoint)})"]),
        *([] if endpoint is None else [f"SELECT nv_embed.record_models({_literal(_told(models))})"]),
    ]


def uninstall_sql() -> str:
    """A statement that removes the library; it fails where a table is declared."""
    names = sorted(set(re.findall(r"FUNCTION @extschema@\.(\w+)", "\n".join(file.read_text() for file in _files("functions")))))
    return (Path(__file__).parent / "uninstall.sql").read_text().replace("@names@", ", ".join(map(_literal, names)))


def served(endpoint: str | None) -> "list[Model]":
    """The models of a sidecar, its default first; none without one. It is shown what the environment says, `NV_EMBED_TOKEN_FILE` and so on."""
    if endpoint is None:
        return []
    from nv_embed.client import Client  # with it comes grpc, which nothing else here needs
    from nv_embed.credentials import from_environment

    with Client(endpoint, **from_environment()) as client:
        return list(client.list_models())


def make_data(bind: sqlalchemy.Connection, schema: str, revision: str) -> None:
    """What a revision does to what holds data: its SQL file, or for the first one, until that is frozen, what `sql/schema/` says."""
    for file in _data(revision):
        run(bind, _rendered(file, schema))


def make_code(bind: sqlalchemy.Connection, schema: str) -> None:
    """What holds code, where it is not what the database has."""
    connection, digest = _driver(bind), _digest(schema)
    known = connection.execute("SELECT version, code FROM nv_embed.installation").fetchone()
    if known != (__version__, digest):
        run(bind, _code(schema))
        connection.execute("SELECT nv_embed.record_installation(%s, %s, %s)", [__version__, schema, digest])


def run(bind: sqlalchemy.Connection, statements: str) -> None:
    """Run what an SQL file says."""
    _driver(bind).execute(statements.encode())


def _driver(bind: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    return cast("psycopg.Connection[Any]", bind.connection.driver_connection)


def _ask(connection: psycopg.Connection[Any], query: Any, arguments: Sequence[Any] | None = None) -> Any:
    """The first column of the first row, None where there is none."""
    row = connection.execute(query, arguments).fetchone()
    return None if row is None else row[0]


def _installed(connection: psycopg.Connection[Any]) -> tuple[str, str, str] | None:
    """Version, schema and digest of the library install that is there.

    Raises:
        InstallRefused: something else is there.
    """
    if _ask(connection, "SELECT 1 FROM pg_extension WHERE extname = 'nv_embed'"):
        raise InstallRefused(
            "this database has the extension nv_embed, which does all that the library does: leave --library out, or DROP EXTENSION nv_embed first"
        )
    if not _ask(connection, "SELECT 1 FROM pg_namespace WHERE nspname = 'nv_embed'"):
        return None
    if not _ask(connection, "SELECT to_regclass('nv_embed.installation') IS NOT NULL"):
        raise InstallRefused("this database has a schema nv_embed that no install of ours has made: rename it first")
    found = connection.execute("SELECT version, schema, code FROM nv_embed.installation").fetchone()
    assert found is not None
    if _as_numbers(found[0]) > _as_numbers(__version__):
        raise InstallRefused(f"this database has nv_embed {found[0]}, and this program is nv_embed {__version__}: update the program")
    return cast(tuple[str, str, str], found)


def _chosen_schema(connection: psycopg.Connection[Any], wanted: str | None, before: tuple[str, str, str] | None) -> str:
    if before is not None:
        if wanted not in (None, before[1]):
            raise InstallRefused(f"nv_embed is installed in schema {before[1]} already, not in {wanted}: leave --schema out")
        return before[1]
    schema = wanted or "public"
    if set(schema) & set("'$"):  # it stands in functions' bodies and in literals there
        raise InstallRefused(f"the name of schema {schema} has an apostrophe or a dollar: name another one with --schema")
    if not _ask(connection, "SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]):
        raise InstallRefused(f"there is no schema {schema}: CREATE SCHEMA it first, or name another one with --schema")
    return schema


def _prepare_session(connection: psycopg.Connection[Any], schema: str) -> None:
    """For this transaction, what CREATE EXTENSION gives a script."""
    if connection.info.server_version < OLDEST_SERVER * 10000:
        raise InstallRefused(f"this server is PostgreSQL {connection.info.server_version // 10000}: {OLDEST_SERVER} or newer is needed")
    path = ", ".join(sql.Identifier(name).as_string(None) for name in (schema, _pgvector_schema(connection)))
    for name, value in {"search_path": f"{path}, pg_temp", "check_function_bodies": "off", "client_min_messages": "warning"}.items():
        _ask(connection, "SELECT set_config(%s, %s, true)", [name, value])


def _pgvector_schema(connection: psycopg.Connection[Any]) -> str:
    query = "SELECT n.nspname, e.extversion FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"
    found = connection.execute(query).fetchone()
    if found is None:
        try:
            connection.execute("CREATE EXTENSION vector")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            raise InstallRefused(
                f"pgvector is not in this database ({error.diag.message_primary}): have its administrator run CREATE EXTENSION vector"
            ) from None
        found = connection.execute(query).fetchone()
        assert found is not None
    if _as_numbers(found[1]) < OLDEST_PGVECTOR:
        raise InstallRefused(f"pgvector {found[1]} is too old: 0.8.0 or newer is needed, ALTER EXTENSION vector UPDATE brings what the server has")
    return str(found[0])


def _upgrade(bind: sqlalchemy.Connection, schema: str) -> None:
    """Alembic's revisions, then the code: `migrations/env.py`."""
    if not _ask(_driver(bind), "SELECT 1 FROM pg_namespace WHERE nspname = 'nv_embed'"):
        run(bind, _rendered(_folder("sql") / "schema" / "namespace.sql", schema))
    config = Config()
    config.set_main_option("script_location", str(_folder("migrations")).replace("%", "%%"))
    config.attributes.update(connection=bind, schema=schema)
    command.upgrade(config, "head")


def _configure(connection: psycopg.Connection[Any], endpoint: str | None, models: "Sequence[Model]") -> int:
    """How many models changed."""
    if endpoint is None:
        return 0
    connection.execute("SELECT nv_embed.configure(%s)", [endpoint])
    return int(_ask(connection, "SELECT nv_embed.record_models(%s)", [_told(models)]))


def _told(models: "Sequence[Model]") -> str:
    """As nv_embed.record_models() reads them."""
    told = [
        {
            "name": model.name,
            "revision": model.revision,
            "native_dim": model.native_dim,
            "trained_dims": list(model.trained_dims),
            "declared_dims": list(model.declared_dims),
        }
        for model in models
    ]
    return json.dumps(told)


def _literal(value: str) -> str:
    return sql.Literal(value).as_string(None)


def _data(revision: str) -> list[Path]:
    """The files of what a revision does to what holds data."""
    file = _folder("migrations") / "versions" / f"{revision}.sql"
    # The namespace is made before Alembic, whose own table lies in it.
    fresh = [each for each in _files("schema") if each.stem != "namespace"]
    return fresh if revision == FIRST_REVISION and not file.exists() else [file]


def _folder(name: str) -> Path:
    """Of `sql` and `migrations`: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    return next(folder for folder in (package / name, package.parent / name) if folder.is_dir())


def _files(part: str) -> list[Path]:
    """The library's files of `schema` or `functions`, in their order."""
    lines = [line.split() for line in (_folder("sql") / "order").read_text().splitlines()]
    return [_folder("sql") / name for name, *only in lines if name.startswith(f"{part}/") and only in ([], ["library"])]


def _rendered(file: Path, schema: str) -> str:
    return file.read_text().replace("@extschema@", sql.Identifier(schema).as_string(None))


def _code(schema: str) -> str:
    return "\n".join(_rendered(file, schema) for file in _files("functions"))


def _digest(schema: str) -> str:
    return hashlib.sha256(_code(schema).encode()).hexdigest()


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
