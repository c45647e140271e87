"""
A sidecar that runs in the background.

The library never imports the sidecar; it starts it as a program. A sidecar that was started here is found again by its own command line, which names
the file in which it says when it is ready: no number of a process is kept that could come to mean another one.

In:  a model and addresses      Out: a process that outlives the caller unless told otherwise, and where it answers
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A model that must first be fetched is the longest wait there is.
START_TIMEOUT_S = 1800
# After SIGTERM, beside the time that calls under way have.
STOP_TIMEOUT_S = 10
KILL_TIMEOUT_S = 10
# That of a sidecar of an earlier release, which did not say it.
DRAIN_S = 10.0
POLL_S = 0.05


class SidecarFailed(Exception):
    """The sidecar cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class Serving:
    """A sidecar that serves.

    Attributes:
        asked_for: the `--model` that it was started with.
        options: what else it was told on its command line.
        models: the names of what it serves, its default first.
        addresses: where it answers, as gRPC takes them.
        http: where it answers over HTTP.
        drain_s: how long calls under way may take to finish when it is told to end.
        since: when it was ready, in seconds since 1970.
    """

    pid: int
    asked_for: str
    options: tuple[str, ...]
    models: tuple[str, ...]
    addresses: tuple[str, ...]
    http: tuple[str, ...]
    drain_s: float
    since: float

    @property
    def tcp_address(self) -> str | None:
        return next((address for address in self.addresses if not address.startswith("unix:")), None)

    @property
    def unix_address(self) -> str | None:
        return next((address for address in self.addresses if address.startswith("unix:")), None)

    @property
    def own_address(self) -> str:
        """The one for programs of this machine: a unix socket, which needs no certificate, where there is one."""
        return self.unix_address or self.addresses[0]

    def serves(self, model: str) -> bool:
        return model in (self.asked_for, *self.models)


@dataclass(frozen=True)
class SidecarProcess:
    """A sidecar's place: the file in which it says that it is ready, and its log."""

    ready_file: Path
    log: Path

    def start(self, model: str, addresses: Sequence[str], options: Sequence[str] = (), *, outlives: bool = True) -> Serving:
        """Start a sidecar and wait until it serves. It has a session of its own, so that it outlives the terminal.

        Args:
            options: further ones of its command line, other than `--ready-file`.
            outlives: whether it goes on when the thread that started it is gone; else Linux tells it to end then, however the caller died.
        Raises:
            SidecarFailed: it ended, or is not ready in time.
        """
        self.ready_file.unlink(missing_ok=True)
        listen = [word for address in addresses for word in ("--listen", address)]
        command = [sys.executable, "-m", "nv_embed_sidecar", "--model", model, *listen, "--ready-file", str(self.ready_file), *options]
        if not outlives:
            command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
        process: subprocess.Popen[bytes] | None = None
        try:
            with _uninterrupted(), self.log.open("ab") as log:
                written = log.tell()
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.ready_file.parent, start_new_session=True
                )
            return self._wait_until_ready(process, written)
        except BaseException:
            if process is not None:
                process.kill()
                process.wait()
            raise

    def stop(self) -> bool:
        """Stop it, with the calls under way answered first; one that does not end is killed. Returns whether one ran."""
        found, serving = self.processes(), self.serving()
        drain_s = serving.drain_s if serving is not None else 0.0  # one that does not serve yet has nothing to answer
        for number, patience_s in ((signal.SIGTERM, drain_s + STOP_TIMEOUT_S), (signal.SIGKILL, KILL_TIMEOUT_S)):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)  # one that was suspended hears nothing until it goes on
            deadline = time.monotonic() + patience_s
            while self.processes() and time.monotonic() < deadline:
                time.sleep(POLL_S)
        left = self.processes()
        if left:
            raise SidecarFailed(f"the sidecar, process {left[0]}, does not end; see {self.log}")
        self.ready_file.unlink(missing_ok=True)
        return bool(found)

    def serving(self) -> Serving | None:
        """The sidecar that says it is ready, and lives."""
        said = self._said()
        if said is None or said["pid"] not in self.processes():
            return None
        command = _command_line(said["pid"])
        asked_for = command[command.index("--model") + 1] if "--model" in command[:-1] else ""
        options = tuple(command[command.index("--ready-file") + 2 :])
        return Serving(
            pid=said["pid"],
            asked_for=asked_for,
            options=options,
            models=tuple(said["models"]),
            addresses=tuple(said["addresses"]),
            http=tuple(said.get("http", ())),
            drain_s=said.get("drain_s", DRAIN_S),
            since=self.ready_file.stat().st_mtime,
        )

    def processes(self) -> list[int]:
        """Living processes that were started with our ready file."""
        return [pid for pid in _pids() if _names(_command_line(pid), self.ready_file)]

    def _said(self) -> dict[str, Any] | None:
        try:
            said: dict[str, Any] = json.loads(self.ready_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return said

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]", written: int) -> Serving:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            serving = self.serving()
            if serving is not None and serving.pid == process.pid:
                return serving
            status = process.poll()
            if status is not None:
                raise SidecarFailed(f"the sidecar ended with status {status} while it started: {self._last_words(written)}; see {self.log}")
            time.sleep(POLL_S)
        raise SidecarFailed(f"the sidecar is not ready after {START_TIMEOUT_S} s; see {self.log}")

    def _last_words(self, written: int) -> str:
        said = self.log.read_bytes()[written:].decode(errors="replace")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return lines[-1].removeprefix("nv_embed_sidecar: ") if lines else "it did not say why"


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> list[str]:
    """A process's arguments; none for one that is gone, or dead and not yet buried."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]]
    except OSError:
        return []


def _names(command: list[str], ready_file: Path) -> bool:
    return "nv_embed_sidecar" in command and "--ready-file" in command[:-1] and command[command.index("--ready-file") + 1] == str(ready_file)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for what is done inside: a process must not have begun without its id being known."""
    if threading.current_thread() is not threading.main_thread():  # whom Ctrl-C does not reach
        yield
        return
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt
