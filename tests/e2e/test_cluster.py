"""
A private PostgreSQL: made whole or not at all, started on a free port, seen to be gone when it was killed.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from program import eventually
from servers import shared_folder

from nv_embed.cluster import FAST_AND_UNSAFE, SOCKET_PATH_BYTES, Cluster, ClusterFailed
from nv_embed.home import give_to_postgres, postgres_user


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[Cluster]:
    socket_dir = folder / "run"
    socket_dir.mkdir()
    give_to_postgres(socket_dir)
    cluster = Cluster(folder / "data", socket_dir, settings=FAST_AND_UNSAFE)
    assert cluster.create()
    yield cluster
    cluster.delete()


@pytest.fixture
def running(own: Cluster) -> Cluster:
    own.start()
    return own


def kill(cluster: Cluster) -> None:
    postmaster = cluster.running()
    assert postmaster is not None
    os.kill(postmaster.pid, signal.SIGKILL)
    assert eventually(lambda: not cluster.is_running())


def show(cluster: Cluster, setting: str) -> str:
    with cluster.connect() as connection:
        row = connection.execute("SELECT current_setting(%s)", [setting]).fetchone()
    assert row is not None
    return str(row[0])


def test_create_twice_makes_it_once(own: Cluster) -> None:
    assert own.create() is False


def test_it_is_utf8_with_checksums_and_takes_tcp_on_this_machine_only(running: Cluster) -> None:
    found = {name: show(running, name) for name in ("server_encoding", "data_checksums", "password_encryption", "listen_addresses", "fsync")}
    assert found == {
        "server_encoding": "UTF8",
        "data_checksums": "on",
        "password_encryption": "scram-sha-256",
        "listen_addresses": "127.0.0.1",
        "fsync": "off",
    }


def test_data_and_password_are_closed_to_others(own: Cluster) -> None:
    assert own.data_dir.stat().st_mode & 0o077 == 0
    assert (own.data_dir / "nv_embed.password").stat().st_mode & 0o077 == 0


def test_start_and_stop_may_be_repeated(running: Cluster) -> None:
    assert running.start() == running.running()
    assert running.stop() is True
    assert running.stop() is False


def test_a_database_is_made_once_whatever_its_name(running: Cluster) -> None:
    name = 'odd "name" /?'
    assert running.create_database(name) is True
    assert running.create_database(name) is False
    with running.connect(name) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (name,)


def test_a_taken_port_is_given_up_for_another(own: Cluster) -> None:
    own.stop()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert own.start(port).port != port


def test_a_killed_server_is_gone_and_starts_again_on_its_port(running: Cluster) -> None:
    postmaster = running.running()
    assert postmaster is not None
    kill(running)
    with pytest.raises(ClusterFailed, match="does not run"):
        running.dsn()
    assert running.start(postmaster.port).port == postmaster.port


def test_a_process_that_got_a_dead_servers_number_is_not_taken_for_it(running: Cluster) -> None:
    postmaster = running.running()
    assert postmaster is not None
    kill(running)
    # It must be of the same user: Postgres itself looks no further.
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, user=postgres_user())
    try:
        for lock in (running.data_dir / "postmaster.pid", *own_locks(running)):
            lines = lock.read_text().splitlines()
            lock.write_text("\n".join([str(other.pid), *lines[1:], ""]))
        assert not running.is_running()
        assert running.stop() is False
        assert running.start(postmaster.port).port == postmaster.port
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_root_of_a_container_sees_a_server_that_runs_as_somebody_else(running: Cluster) -> None:
    look = f"from pathlib import Path; from nv_embed.cluster import Cluster; print(Cluster(Path({str(running.data_dir)!r})).is_running())"
    contained = ["setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace"]
    assert subprocess.run([*contained, sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "True\n"


def own_locks(cluster: Cluster) -> list[Path]:
    assert cluster.socket_dir is not None
    return list(cluster.socket_dir.glob("*.lock"))


def test_a_server_that_hangs_is_stopped_all_the_same(running: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    postmaster = running.running()
    assert postmaster is not None
    monkeypatch.setattr("nv_embed.cluster.STOP_TIMEOUT_S", 1)
    os.kill(postmaster.pid, signal.SIGSTOP)
    assert running.stop() is True
    assert not running.is_running()


def test_postgres_does_not_see_the_callers_environment(own: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    own.stop()
    monkeypatch.setenv("PYTHONPATH", "/tmp/evil")
    monkeypatch.setenv("PGPORT", "1")
    postmaster = own.start()
    environment = Path(f"/proc/{postmaster.pid}/environ").read_bytes()
    assert b"PYTHONPATH" not in environment
    assert b"PGPORT" not in environment


def test_a_socket_whose_path_is_too_long_is_left_out(folder: Path) -> None:
    deep = folder / ("x" * SOCKET_PATH_BYTES)
    deep.mkdir()
    give_to_postgres(deep)
    cluster = Cluster(folder / "other", deep, settings=FAST_AND_UNSAFE)
    cluster.create()
    try:
        cluster.start()
        assert show(cluster, "unix_socket_directories") == ""
    finally:
        cluster.delete()


def test_data_that_cannot_be_removed_is_not_called_deleted(folder: Path) -> None:
    cluster = Cluster(folder / "linked", settings=FAST_AND_UNSAFE)
    cluster.create()
    cluster.data_dir.rename(folder / "elsewhere")
    cluster.data_dir.symlink_to(folder / "elsewhere")
    with pytest.raises(ClusterFailed, match=r"linked cannot be removed: .*symbolic link"):
        cluster.delete()
    assert cluster.exists()


def test_a_failed_initdb_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(folder / "failed")
    monkeypatch.setattr("nv_embed.cluster.SUPERUSER", "pg_reserved")
    with pytest.raises(ClusterFailed, match="initdb"):
        cluster.create()
    assert not list(folder.glob("failed*"))
    assert not cluster.exists()


def test_data_of_another_version_is_not_touched(folder: Path) -> None:
    data = folder / "older"
    data.mkdir()
    (data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ClusterFailed, match=r"made by PostgreSQL 9\.6"):
        Cluster(data).create()
    with pytest.raises(ClusterFailed, match=r"made by PostgreSQL 9\.6"):
        Cluster(data).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as somebody else")
def test_a_folder_that_postgres_cannot_enter_is_refused_in_words(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ClusterFailed, match="cannot enter"):
        Cluster(closed / "data").create()
