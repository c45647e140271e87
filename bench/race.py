"""
Competitors that take turns.

Each is a process (`competitors/turns.py`). All are told the same texts, and in each round each computes them once: what else the machine does falls
on all of them, and ratios are taken between neighbours in time.

In:  commands that start competitors      Out: seconds a round
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "competitors"
LAST_CHARS = 1000


class CompetitorEnded(Exception):
    """A competitor's process is gone; the message is the end of what it said."""


class Runner:
    """A competitor's process.

    Args:
        name: how the report calls it.
        script: its file in `competitors/`.
        folder: where its log and its vectors may lie.
        python: whose libraries it uses; ours unless given.
        environment: what is set for it.
    """

    def __init__(
        self, name: str, script: str, *arguments: str, folder: Path, python: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self._files = folder / "".join(letter if letter.isalnum() else "-" for letter in name)
        with self._files.with_suffix(".log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python or sys.executable), str(FOLDER / script), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})},
            )
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def take(self, name: str, texts: Sequence[str]) -> "NDArray[numpy.float32]":
        """Hand over some texts; their vectors."""
        file = self._files.with_suffix(".npy")
        self.about = self._ask(take=name, texts=texts, vectors=str(file))
        vectors: NDArray[numpy.float32] = numpy.load(file)
        return vectors

    def run(self, name: str) -> float:
        """Seconds that the texts of that name take."""
        return float(self._ask(run=name)["seconds"])

    def rates(self) -> Mapping[str, float]:
        """What `competitors/limit.py` measures in its turn, by precision."""
        return self._ask(run="")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, **command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended: what follows says why
            self._process.stdin.write(json.dumps(command) + "\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CompetitorEnded(self._files.with_suffix(".log").read_text()[-LAST_CHARS:].strip() or "it said nothing")
        answer: dict[str, Any] = json.loads(line)
        return answer


def least_cosine(vectors: "NDArray[numpy.float32]", reference: "NDArray[numpy.float32]") -> float:
    """The least of the cosines of corresponding rows, each of unit length."""
    return float(numpy.einsum("nd,nd->n", vectors.astype(numpy.float64), reference.astype(numpy.float64)).min())
