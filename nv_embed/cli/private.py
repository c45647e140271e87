"""
The private servers: one PostgreSQL and one sidecar under the home.

Values and questions that the commands share. What runs is asked of the servers themselves; the only thing remembered is the port, so that a URL that
was copied somewhere is still right after `down` and `up`.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from nv_embed import home
from nv_embed.cli.failure import Failure
from nv_embed.cluster import SOCKET_PATH_BYTES, Cluster, ClusterFailed, Postmaster
from nv_embed.errors import EmbedError
from nv_embed.sidecar_process import Serving, SidecarProcess

DATABASE = "nv_embed"
NOT_UP = "nothing runs here yet: run `nv-embed up`"

HEALTH_TIMEOUT_S = 5.0
LOG_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Servers:
    """The private servers of one home."""

    home: Path

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.home / "data", self.home / "run", self.home / "log/postgres.log")

    @property
    def sidecar(self) -> SidecarProcess:
        return SidecarProcess(self.home / "sidecar.json", self.home / "log/sidecar.log")

    @property
    def sidecar_socket(self) -> Path | None:
        """Where Postgres reaches the sidecar; None where the path is longer than a socket's may be."""
        path = self.home / "run/sidecar.sock"
        return path if len(os.fsencode(path)) <= SOCKET_PATH_BYTES else None

    def dsn(self) -> str:
        if not self.cluster.is_running():
            raise Failure(NOT_UP)
        return self.cluster.dsn(DATABASE)

    def endpoint(self) -> str:
        """The sidecar's address for the programs of this machine."""
        serving = self.sidecar.serving()
        if serving is None or serving.tcp_address is None:
            raise Failure("no sidecar runs here: run `nv-embed up`, or say where one is with --endpoint")
        return serving.tcp_address

    def remembered_port(self) -> int | None:
        try:
            port = json.loads((self.home / "state.json").read_text())["port"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return port if isinstance(port, int) else None

    def remember_port(self, port: int) -> None:
        written = self.home / "state.json.new"
        written.write_text(json.dumps({"port": port}) + "\n")
        written.replace(self.home / "state.json")

    def shorten_logs(self) -> None:
        """Put a log that has grown long aside; the one put aside before is lost."""
        for log in (self.cluster.log, self.sidecar.log):
            with suppress(FileNotFoundError):
                if log.stat().st_size > LOG_BYTES:
                    log.replace(log.with_suffix(".log.1"))


def servers() -> Servers:
    return Servers(home.home())


@contextmanager
def alone(where: Path) -> Iterator[None]:
    """Hold the lock of a home: whoever starts or stops its servers does so alone. Waits for another one to end."""
    with (where / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            from nv_embed.cli.screen import note

            note("another `nv-embed up` or `nv-embed down` is at work here; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def health(address: str) -> str:
    """What the health service at this address says, or why it says nothing."""
    from nv_embed.client import Client
    from nv_embed.credentials import from_environment

    try:
        with Client(address, timeout_s=HEALTH_TIMEOUT_S, **from_environment()) as client:
            return client.health()
    except EmbedError as error:
        return str(error)


@dataclass(frozen=True)
class Look:
    """The private servers as they are now.

    Attributes:
        versions: of the server, and of the extensions in the database, by name; empty where the server does not answer.
        health: `SERVING`, or why not; None without a sidecar.
    """

    servers: Servers
    postmaster: Postmaster | None
    serving: Serving | None
    versions: dict[str, str]
    health: str | None

    @property
    def healthy(self) -> bool:
        return self.health == "SERVING"

    @property
    def up(self) -> bool:
        return self.postmaster is not None and "nv_embed" in self.versions and self.healthy

    def as_json(self) -> dict[str, Any]:
        now = time.time()
        postmaster, serving, cluster = self.postmaster, self.serving, self.servers.cluster
        return {
            "up": self.up,
            "dsn": None if postmaster is None else cluster.dsn(DATABASE),
            "endpoint": None if serving is None else serving.tcp_address,
            "model": None if serving is None else serving.models[0],
            "home": str(self.servers.home),
            "postgres": {
                "running": postmaster is not None,
                "pid": None if postmaster is None else postmaster.pid,
                "port": None if postmaster is None else postmaster.port,
                "version": self.versions.get("postgres"),
                "extensions": {name: version for name, version in self.versions.items() if name != "postgres"},
                "data_dir": str(cluster.data_dir),
                "uptime_s": None if postmaster is None else round(now - postmaster.started_at),
                "log": str(cluster.log),
            },
            "sidecar": {
                "running": serving is not None,
                "healthy": self.healthy,
                "pid": None if serving is None else serving.pid,
                "asked_for": None if serving is None else serving.asked_for,
                "models": [] if serving is None else list(serving.models),
                "addresses": [] if serving is None else list(serving.addresses),
                "http": [] if serving is None else list(serving.http),
                "uptime_s": None if serving is None else round(now - serving.since),
                "log": str(self.servers.sidecar.log),
            },
        }


def look(private: Servers) -> Look:
    postmaster = private.cluster.running()
    serving = private.sidecar.serving()
    return Look(
        servers=private,
        postmaster=postmaster,
        serving=serving,
        versions={} if postmaster is None else _versions(private.cluster),
        health=None if serving is None else health(serving.own_address),
    )


def _versions(cluster: Cluster) -> dict[str, str]:
    try:
        with psycopg.connect(cluster.dsn(DATABASE), connect_timeout=3) as connection:
            rows = connection.execute(
                "SELECT 'postgres', current_setting('server_version') UNION ALL "
                "SELECT extname, extversion FROM pg_extension WHERE extname IN ('nv_embed', 'vector')"
            ).fetchall()
    except (psycopg.Error, ClusterFailed):
        return {}
    return dict(rows)
