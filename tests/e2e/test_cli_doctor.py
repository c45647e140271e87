"""
`nv-embed doctor` and `nv-embed install`: one fault at a time, and each is found and named with a remedy.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from program import Done, Program, eventually, failed, program_with_own_home, succeeded
from servers import Sidecar, shared_folder

from nv_embed import __version__
from nv_embed.cluster import Cluster
from nv_embed.home import pg_bin, pgroot


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with program_with_own_home() as own:
        yield own


@pytest.fixture
def up(program: Program) -> Program:
    succeeded(program("up", "--model", "fake"))
    return program


@pytest.fixture
def other_pgroot() -> Iterator[Path]:
    """A copy of PostgreSQL's tree to break; what is large in it is linked."""
    with shared_folder() as folder:
        shutil.copytree(pgroot(), folder / "pgroot", symlinks=True, copy_function=link_or_copy)
        yield folder / "pgroot"


def link_or_copy(source: str, target: str) -> None:
    try:
        if Path(source).suffix != ".control":
            os.link(source, target)
            return
    except OSError:
        pass  # another file system
    shutil.copy2(source, target)


def findings(done: Done) -> dict[str, tuple[str, str, str]]:
    """State, detail and remedy by name."""
    return {finding["name"]: (finding["state"], finding["detail"], finding["remedy"]) for finding in json.loads(done.stdout)}


def faults(done: Done) -> dict[str, tuple[str, str, str]]:
    return {name: finding for name, finding in findings(done).items() if finding[0] == "fail"}


def test_all_is_well_when_everything_is_up(up: Program) -> None:
    done = up("doctor", "--json")
    assert faults(done) == {}
    assert done.returncode == 0
    assert len(findings(done)) >= 14


def test_people_get_a_table(up: Program) -> None:
    said = succeeded(up("doctor"))
    assert "Postgres server" in said
    assert "checks" in said


def test_each_fault_has_a_remedy_and_a_name(up: Program) -> None:
    succeeded(up("down"))
    done = up("doctor", "--json")
    assert done.returncode == 1
    assert {name: remedy for name, (_, _, remedy) in faults(done).items()} == {"Postgres server": "nv-embed up", "sidecar": "nv-embed up"}


def test_a_killed_sidecar_is_found_from_both_sides(up: Program) -> None:
    os.kill(up.status()["sidecar"]["pid"], signal.SIGKILL)
    assert eventually(lambda: not up.status()["sidecar"]["running"])
    assert faults(up("doctor", "--json")).keys() == {"sidecar", "way from Postgres to the sidecar"}


def test_an_endpoint_that_leads_elsewhere_is_found(up: Program, sidecar: Sidecar) -> None:
    with psycopg.connect(succeeded(up("dsn")).strip(), autocommit=True) as connection:
        connection.execute("SELECT nv_embed.configure('127.0.0.1:1')")
        state, detail, _ = findings(up("doctor", "--json"))["way from Postgres to the sidecar"]
        assert (state, "127.0.0.1:1" in detail) == ("fail", True)
        succeeded(up("up"))
        assert findings(up("doctor", "--json"))["way from Postgres to the sidecar"][0] == "ok"


def test_a_database_without_the_extension_is_found(up: Program) -> None:
    with psycopg.connect(succeeded(up("dsn")).strip(), autocommit=True) as connection:
        connection.execute("DROP EXTENSION nv_embed CASCADE")
        assert faults(up("doctor", "--json")).keys() == {"extension in the database"}
        succeeded(up("up"))
        assert faults(up("doctor", "--json")) == {}


def test_an_installation_without_postgres_is_found(program: Program, tmp_path: Path) -> None:
    found = faults(program("doctor", "--json", NV_EMBED_PGROOT=str(tmp_path)))
    assert found["PostgreSQL"][2] == "make setup"


def test_an_old_pgvector_is_found(program: Program, other_pgroot: Path) -> None:
    control = share(other_pgroot) / "vector.control"
    control.write_text("default_version = '0.8.0'\n")
    found = faults(program("doctor", "--json", NV_EMBED_PGROOT=str(other_pgroot)))
    assert found["pgvector"] == ("fail", "0.8.0 is older than 0.8.6, the first without known faults of its indexes", "make setup")


def test_an_extension_of_another_version_is_found(program: Program, other_pgroot: Path) -> None:
    control = share(other_pgroot) / "nv_embed.control"
    control.write_text("default_version = '0.0.1'\n")
    assert "0.0.1" in faults(program("doctor", "--json", NV_EMBED_PGROOT=str(other_pgroot)))["extension files"][1]
    control.unlink()
    assert faults(program("doctor", "--json", NV_EMBED_PGROOT=str(other_pgroot)))["extension files"][2] == "make setup"


def test_a_broken_python_bundle_is_found(program: Program, other_pgroot: Path) -> None:
    bundle = other_pgroot / library().relative_to(pgroot()) / "nv_embed"
    shutil.rmtree(bundle / "orjson")
    assert "orjson" in faults(program("doctor", "--json", NV_EMBED_PGROOT=str(other_pgroot)))["Python bundle of the server"][1]


def test_up_updates_the_extension_of_an_older_database(up: Program, other_pgroot: Path) -> None:
    succeeded(up("down"))
    control = share(other_pgroot) / "nv_embed.control"
    control.write_text(control.read_text().replace(__version__, "99.0.0"))
    (share(other_pgroot) / f"nv_embed--{__version__}--99.0.0.sql").write_text("-- nothing to do\n")
    try:
        assert f"99.0.0, updated from {__version__}" in succeeded(up("up", "--model", "fake", NV_EMBED_PGROOT=str(other_pgroot)))
        assert up.status()["postgres"]["extensions"]["nv_embed"] == "99.0.0"
    finally:
        succeeded(up("down", "--delete-data"))


def share(root: Path) -> Path:
    return root / "usr/share/postgresql" / pg_bin("postgres").parent.parent.name / "extension"


def library() -> Path:
    return pg_bin("postgres").parent.parent / "lib"


def test_install_makes_and_configures_the_extension(cluster: Cluster, sidecar: Sidecar, program: Program) -> None:
    cluster.create_database("bare")
    try:
        url = cluster.dsn("bare")
        assert "installed" in succeeded(program("install", "--database-url", url, "--endpoint", sidecar.address))
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT vector_dims(nv_embed('hello', 384))").fetchone() == (384,)
        assert "is there already" in succeeded(program("install", "--database-url", url))
    finally:
        with cluster.connect() as connection:
            connection.execute("DROP DATABASE bare WITH (FORCE)")


def test_install_by_an_ordinary_role_is_one_line(cluster: Cluster, template: str, program: Program) -> None:
    assert "permission denied" in failed(program("install", "--database-url", cluster.dsn("postgres", user="app", password="app")))


def test_install_with_an_endpoint_that_is_none_is_one_line(cluster: Cluster, database: str, program: Program) -> None:
    assert "not an address" in failed(program("install", "--database-url", cluster.dsn(database), "--endpoint", "nonsense"))


def test_install_without_a_server_is_one_line(program: Program) -> None:
    assert "127.0.0.1" in failed(program("install", "--database-url", "postgresql://nobody@127.0.0.1:1/none"))


def test_install_with_a_url_that_is_none_is_wrong_usage(program: Program) -> None:
    assert program("install", "--database-url", "nonsense").returncode == 2
