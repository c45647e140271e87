"""
Real servers for the tests: a PostgreSQL of their own and sidecars as processes.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nv_embed.cluster import FAST_AND_UNSAFE, Cluster
from nv_embed.home import give_to_postgres

START_TIMEOUT_S = 120


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A short-named folder that PostgreSQL's user can work in too; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="nv_embed-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_cluster(folder: Path, **settings: str) -> Iterator[Cluster]:
    socket_dir = folder / "socket"
    socket_dir.mkdir()
    give_to_postgres(socket_dir)
    cluster = Cluster(folder / "data", socket_dir, settings={**FAST_AND_UNSAFE, "max_connections": "50", **settings})
    cluster.create()
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.delete()


@dataclass
class Sidecar:
    """A sidecar process.

    Attributes:
        address: where it listens; the same after `restart`.
    """

    arguments: list[str]
    folder: Path
    address: str
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        ready = self.folder / f"{Path(self.address.removeprefix('unix:')).name}.json"
        ready.unlink(missing_ok=True)
        log: IO[bytes] = (self.folder / "sidecar.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nv_embed_sidecar", *self.arguments, "--listen", self.address, "--ready-file", str(ready)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError((self.folder / "sidecar.log").read_text()[-2000:])
            time.sleep(0.02)
        self.ready: dict[str, Any] = json.loads(ready.read_text())

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Die at once, as by a power cut."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=START_TIMEOUT_S)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.wait()


@contextmanager
def running_sidecar(folder: Path, *arguments: str, name: str = "sidecar.sock") -> Iterator[Sidecar]:
    sidecar = Sidecar(list(arguments), folder, f"unix:{folder / name}")
    try:
        sidecar.start()
        yield sidecar
    finally:
        sidecar.stop()
