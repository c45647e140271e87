"""
Fixtures: one PostgreSQL and one fake-engine sidecar for the whole run, databases with nv_embed, and connections that roll back.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from counting import Counter, counted
from hypothesis import HealthCheck, settings
from installs import Install, installs
from psycopg import sql
from servers import Sidecar, running_cluster, running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.cluster import Cluster

Connection = psycopg.Connection[Any]

# How long an example takes depends on what else the machine does: that is for benchmarks.
settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


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
def make_install(cluster: Cluster, sidecar: Sidecar) -> Callable[[str], Install]:
    return installs(cluster, sidecar)


@pytest.fixture
def install(make_install: Callable[[str], Install], request: pytest.FixtureRequest) -> Install:
    """The extension, configured; a test marked BOTH runs on the library too."""
    return make_install(getattr(request, "param", "extension"))


@pytest.fixture
def template(install: Install) -> str:
    """A database with nv_embed; tests that commit get a copy of it."""
    return install.template


@pytest.fixture
def database(install: Install) -> str:
    """The database of the tests that roll back."""
    return install.rollback


@pytest.fixture
def counter(sidecar: Sidecar) -> Iterator[Counter]:
    """Counts what a test sends to the sidecar, once a database is configured to go through it."""
    with counted(sidecar.address) as running:
        yield running


@pytest.fixture
def db(install: Install) -> Iterator[Connection]:
    """A connection of the database's owner, the extension's a superuser; what the test does is rolled back."""
    with psycopg.connect(install.dsn(install.rollback)) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def own_database(cluster: Cluster, install: Install, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database for a test that commits."""
    name = f"test_{abs(hash(request.node.nodeid)):x}"
    install.copy(name)
    yield name
    with cluster.connect() as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def connect(install: Install, own_database: str) -> Iterator[Callable[..., Connection]]:
    """Connections to a database of the test's own, in autocommit mode: as its owner, or as another role, such as the ordinary `app`."""
    opened: list[Connection] = []

    def open_connection(user: str | None = None) -> Connection:
        opened.append(psycopg.connect(install.dsn(own_database, user), autocommit=True))
        return opened[-1]

    yield open_connection
    for connection in opened:
        connection.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("installs")
    if mark is not None and "install" in metafunc.fixturenames:
        metafunc.parametrize("install", mark.args, indirect=True)


def pytest_report_header() -> list[str]:
    import grpc

    return [f"psycopg {psycopg.__version__}, grpcio {grpc.__version__}"]


def pytest_configure() -> None:
    # Started in the background by a script, we would ignore Ctrl-C, and so would every program that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
