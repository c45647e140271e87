"""
Fixtures: one PostgreSQL and one fake-engine sidecar for the whole run, a database with the extension, and connections that roll back.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from counting import Counter, counted
from psycopg import sql
from servers import Sidecar, running_cluster, running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.cluster import Cluster

Connection = psycopg.Connection[Any]

TEMPLATE = "nv_embed_template"


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    with running_cluster(folder) as running:
        yield running


@pytest.fixture(scope="session")
def sidecar(folder: Path) -> Iterator[Sidecar]:
    """The real server over the fake engine."""
    with running_sidecar(folder, "--model", "fake") as running:
        yield running


@pytest.fixture(scope="session")
def client(sidecar: Sidecar) -> Iterator[Client]:
    with Client(sidecar.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def template(cluster: Cluster, sidecar: Sidecar) -> str:
    """A database with the extension, configured; tests that commit get a copy of it."""
    cluster.create_database(TEMPLATE)
    with cluster.connect(TEMPLATE) as connection:
        connection.execute("CREATE EXTENSION nv_embed CASCADE")
        connection.execute("SELECT nv_embed.configure(%s)", [sidecar.address])
        connection.execute("CREATE ROLE app LOGIN PASSWORD 'app'")
        connection.execute("GRANT CREATE ON SCHEMA public TO app")
    return TEMPLATE


@pytest.fixture(scope="session")
def database(cluster: Cluster, template: str) -> str:
    """The database of the tests that roll back."""
    with cluster.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE rollback TEMPLATE {}").format(sql.Identifier(template)))
    return "rollback"


@pytest.fixture
def counter(sidecar: Sidecar) -> Iterator[Counter]:
    """Counts what a test sends to the sidecar, once a database is configured to go through it."""
    with counted(sidecar.address) as running:
        yield running


@pytest.fixture
def db(cluster: Cluster, database: str) -> Iterator[Connection]:
    """A superuser's connection; what the test does is rolled back."""
    with psycopg.connect(cluster.dsn(database)) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def own_database(cluster: Cluster, template: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database for a test that commits."""
    name = f"test_{abs(hash(request.node.nodeid)):x}"
    identifier = sql.Identifier(name)
    with cluster.connect() as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(identifier, sql.Identifier(template)))
        yield name
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))


@pytest.fixture
def connect(cluster: Cluster, own_database: str) -> Iterator[Callable[..., Connection]]:
    """Connections to a database of the test's own, in autocommit mode: as superuser, or as the ordinary role `app`."""
    opened: list[Connection] = []

    def open_connection(user: str | None = None) -> Connection:
        dsn = cluster.dsn(own_database) if user is None else cluster.dsn(own_database, user=user, password=user)
        opened.append(psycopg.connect(dsn, autocommit=True))
        return opened[-1]

    yield open_connection
    for connection in opened:
        connection.close()


def pytest_report_header() -> list[str]:
    import grpc

    return [f"psycopg {psycopg.__version__}, grpcio {grpc.__version__}"]


def pytest_configure() -> None:
    # Started in the background by a script, we would ignore Ctrl-C, and so would every program that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
