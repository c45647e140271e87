"""
A private PostgreSQL server.

A cluster is a data directory and the server that may run on it. What is true of it is read from where Postgres itself writes it (postmaster.pid): any
process can look at a cluster, start it or stop it, and a server that was killed is seen to be gone. Postgres refuses root: when root calls, its
programs run as an unprivileged user.

In:  a data directory      Out: a server on a free port of 127.0.0.1, and its URL
"""

import os
import pwd
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from psycopg import sql

from nv_embed.home import can_enter, give_to_postgres, pg_bin, postgres_user

SUPERUSER = "postgres"

FAST_AND_UNSAFE: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Settings for data that nobody would miss: tests."""

SOCKET_PATH_BYTES = 107
"""The longest path of a unix socket that Linux takes."""

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30

_LOGIN_FILE = "nv_embed.password"
_PORT_TAKEN = re.compile(r'Address already in use|could not create any|\.lock" already exists')
_STILL_DYING = re.compile(r"pre-existing shared memory block")


class ClusterFailed(Exception):
    """The private PostgreSQL cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Postmaster:
    """A running server, as its postmaster.pid describes it."""

    pid: int
    started_at: float
    port: int
    ready: bool


@dataclass(frozen=True)
class Cluster:
    """A data directory and its server.

    Attributes:
        data_dir: where the data is. The directory above must exist, and the user of Postgres must be able to enter it.
        socket_dir: where the server makes its unix socket; None, or too long a path, for none.
        log_file: what the server writes; beside the data unless given.
        settings: server settings for every start, by name.
    """

    data_dir: Path
    socket_dir: Path | None = None
    log_file: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.log_file or self.data_dir.with_name(f"{self.data_dir.name}.log")

    @property
    def password(self) -> str:
        """The superuser's password.

        Raises:
            ClusterFailed: there is no data.
        """
        try:
            return (self.data_dir / _LOGIN_FILE).read_text()
        except FileNotFoundError:
            raise ClusterFailed(f"there is no private PostgreSQL in {self.data_dir}: run `nv-embed up`") from None

    def exists(self) -> bool:
        return (self.data_dir / "PG_VERSION").exists()

    def create(self) -> bool:
        """Make the data directory, unless it is there. It is made under another name, so that a half-made one is never taken for whole.

        Returns:
            whether it was made now.
        Raises:
            ClusterFailed, NotSetUp
        """
        if self.exists():
            self._check_version()
            return False
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise ClusterFailed(f"{self.data_dir} holds something that is not a PostgreSQL data directory: move it away")
        user = postgres_user()
        if user is not None and not can_enter(user, self.data_dir.parent):
            raise ClusterFailed(f"user {user}, who runs Postgres, cannot enter {self.data_dir.parent}: choose another folder with NV_EMBED_HOME")
        staging = self.data_dir.with_name(f"{self.data_dir.name}.new")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir(mode=0o700)
            give_to_postgres(staging)
            self._initdb(staging)
            if self.data_dir.exists():
                self.data_dir.rmdir()
            (staging / "data").rename(self.data_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return True

    def start(self, port: int | None = None) -> Postmaster:
        """Start the server and wait until it takes connections; nothing to do where it already does.

        Args:
            port: the port to try first. Whenever a port is taken, another one is.
        Raises:
            ClusterFailed, NotSetUp
        """
        if self.running() is not None:
            return self._wait_until_ready()
        self._check_version()
        self._forget_dead_postmaster()
        self._open_log()
        deadline = time.monotonic() + START_TIMEOUT_S
        port = port or free_port()
        while True:
            written = self.log.stat().st_size
            arguments = ("-D", str(self.data_dir), "-l", str(self.log), "-o", self._options(port))
            started = _run("pg_ctl", "start", "-w", "-t", str(START_TIMEOUT_S), *arguments)
            if started.returncode == 0:
                return self._wait_until_ready()
            said = self.log.read_bytes()[written:].decode(errors="replace")
            if time.monotonic() > deadline or not (_PORT_TAKEN.search(said) or _STILL_DYING.search(said)):
                raise ClusterFailed(f"PostgreSQL does not start: {_last_complaint(said or started.stderr)}; see {self.log}")
            if _PORT_TAKEN.search(said):
                port = free_port()
            else:
                time.sleep(0.2)

    def stop(self) -> bool:
        """Stop the server: sessions are ended, data is written out. One that does not obey is killed, and recovers at its next start.

        Returns:
            whether it ran.
        Raises:
            ClusterFailed, NotSetUp
        """
        postmaster = self.running()
        if postmaster is None:
            return False
        # Signals rather than pg_ctl: a server can be stopped whose programs are gone. SIGINT is Postgres's fast shutdown, SIGQUIT its immediate one.
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            if self._signal_and_wait(postmaster.pid, number):
                return True
        raise ClusterFailed(f"PostgreSQL, process {postmaster.pid}, does not end; see {self.log}")

    def delete(self) -> None:
        """Stop the server and remove its data and log.

        Raises:
            ClusterFailed, NotSetUp
        """
        self.stop()
        if self.data_dir.exists():
            try:
                shutil.rmtree(self.data_dir)
            except OSError as error:
                raise ClusterFailed(f"{error.filename or self.data_dir} cannot be removed: {error.strerror or error}") from None
        self.log.unlink(missing_ok=True)

    def running(self) -> Postmaster | None:
        """The server, or None where none runs. A process that merely got the number of one that died is not taken for it."""
        try:
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            postmaster = Postmaster(int(lines[0]), float(lines[2]), int(lines[3]), len(lines) > 7 and lines[7].strip() == "ready")
        except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
            return None
        return postmaster if self._is_our_server(postmaster.pid) else None

    def is_running(self) -> bool:
        return self.running() is not None

    def dsn(self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None) -> str:
        """The URL of a database for psql and every driver, over TCP.

        Args:
            password: the user's; may be left out for the superuser.
        Raises:
            ClusterFailed: the server does not run.
        """
        postmaster = self.running()
        if postmaster is None:
            raise ClusterFailed("the private PostgreSQL does not run: run `nv-embed up`")
        secret = self.password if password is None and user == SUPERUSER else password
        login = quote(user, safe="") + (f":{quote(secret, safe='')}" if secret else "")
        return f"postgresql://{login}@127.0.0.1:{postmaster.port}/{quote(database, safe='')}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A superuser's connection in autocommit mode."""
        return psycopg.connect(self.dsn(database), autocommit=True, connect_timeout=10)

    def create_database(self, name: str) -> bool:
        """Make a database, unless it is there; returns whether it was made now."""
        with self.connect() as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
                return False
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            return True

    def socket(self, port: int) -> Path | None:
        """The server's unix socket, where it can have one."""
        if self.socket_dir is None:
            return None
        path = self.socket_dir / f".s.PGSQL.{port}"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES else None

    def _initdb(self, staging: Path) -> None:
        secret = staging / _LOGIN_FILE
        secret.write_text(secrets.token_hex(16))
        secret.chmod(0o600)
        give_to_postgres(secret)
        made = _run(
            "initdb",
            f"--pgdata={staging / 'data'}",
            f"--username={SUPERUSER}",
            f"--pwfile={secret}",
            "--auth-host=scram-sha-256",
            "--auth-local=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--text-search-config=english",
            "--data-checksums",
            "--no-instructions",
            *(["--no-sync"] if self.settings.get("fsync") == "off" else []),
        )
        if made.returncode != 0:
            raise ClusterFailed(f"initdb cannot make {self.data_dir}: {_last_complaint(made.stderr)}")
        secret.rename(staging / "data" / _LOGIN_FILE)

    def _check_version(self) -> None:
        version_file = self.data_dir / "PG_VERSION"
        if not version_file.exists():
            raise ClusterFailed(f"there is no private PostgreSQL in {self.data_dir}: run `nv-embed up`")
        data, programs = version_file.read_text().strip(), pg_bin("postgres").parent.parent.name
        if data != programs:
            raise ClusterFailed(
                f"{self.data_dir} was made by PostgreSQL {data} and {programs} is installed now: remove it with `nv-embed down --delete-data`"
            )

    def _options(self, port: int) -> str:
        socket_path = self.socket(port)
        settings = {
            "cluster_name": "nv_embed",
            **self.settings,
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(socket_path.parent) if socket_path else "",
        }
        # pg_ctl hands its -o to a shell.
        return " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())

    def _open_log(self) -> None:
        self.log.touch(mode=0o600)
        give_to_postgres(self.log)

    def _is_our_server(self, pid: int) -> bool:
        # By its command line, which everybody may read: to see more of another user's process takes CAP_SYS_PTRACE, which root in a container lacks.
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            return Path(os.fsdecode(words[words.index(b"-D") + 1])).samefile(self.data_dir)
        except (OSError, ValueError):
            return False

    def _forget_dead_postmaster(self) -> None:
        """Remove what a server left that was killed: its sockets, and a postmaster.pid whose number went to another process, which Postgres would
        take for a running server."""
        if self.socket_dir is not None:
            for claim in self.socket_dir.glob(".s.PGSQL.*.lock"):
                if claim.read_text().splitlines()[1:2] == [str(self.data_dir)]:
                    claim.with_suffix("").unlink(missing_ok=True)
                    claim.unlink()
        lock = self.data_dir / "postmaster.pid"
        try:
            os.kill(int(lock.read_text().split()[0]), 0)
        except (OSError, IndexError, ValueError):
            return  # Postgres deals with the file of a process that is gone, and knows best whether its children still live.
        lock.unlink(missing_ok=True)

    def _signal_and_wait(self, pid: int, number: signal.Signals) -> bool:
        """Send the signal; returns whether the server ended in time."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._is_our_server(pid):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _wait_until_ready(self) -> Postmaster:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            postmaster = self.running()
            if postmaster is None:
                raise ClusterFailed(f"PostgreSQL ended while it started; see {self.log}")
            if postmaster.ready:
                return postmaster
            time.sleep(0.05)
        raise ClusterFailed(f"PostgreSQL is not ready after {START_TIMEOUT_S} s; see {self.log}")


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run one of PostgreSQL's programs as the user that Postgres must run as.

    Its environment is a clean one: the server keeps it, and PL/Python in the server would obey the caller's PYTHONPATH.
    """
    switch: dict[str, Any] = {}
    user = postgres_user()
    if user is not None:
        entry = pwd.getpwnam(user)
        switch = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}
    return subprocess.run(
        [str(pg_bin(program)), *arguments],
        **switch,
        umask=0o077,
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"} | {name: os.environ[name] for name in ("TZ",) if name in os.environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_complaint(said: str) -> str:
    """The line of a program's output that says what went wrong."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error):", line)]
    return (complaints or lines or ["it did not say why"])[-1]
