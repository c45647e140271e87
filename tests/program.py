"""
The program as people run it: `nv-embed` in a process, with a home of its own.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import shared_folder

TIMEOUT_S = 180

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Program:
    """`nv-embed` for one home; a developer's own servers are another one's."""

    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "NV_EMBED_HOME": str(self.home), "HF_HUB_OFFLINE": "1"}

    def __call__(self, *arguments: str, text: str | None = None, timeout_s: float = TIMEOUT_S, **env: str) -> Done:
        return subprocess.run(
            command(*arguments),
            env={**self.env, **env},
            input="" if text is None else text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, *arguments: str, **streams: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command(*arguments), env=self.env, **streams)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", "--json").stdout)
        return found

    def processes(self) -> list[str]:
        """Command lines of living processes that have to do with this home: servers, their children, whoever starts them."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    inside = (entry / "cwd").resolve(strict=True).is_relative_to(self.home)
                except OSError:
                    continue
                if line and (inside or str(self.home) in line):
                    found.append(line)
        return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nv_embed.cli", *arguments]


@contextmanager
def program_with_own_home() -> Iterator[Program]:
    with shared_folder() as folder:
        program = Program(folder / "home")
        try:
            yield program
        finally:
            program("down", "--delete-data")


def succeeded(done: Done) -> str:
    """What a command printed, if it succeeded."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


def failed(done: Done) -> str:
    """The one line with which a command failed."""
    assert done.returncode == 1, f"{done.args}\n{done.stdout}{done.stderr}"
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return str(lines[0])


def eventually(true: Callable[[], bool], timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
