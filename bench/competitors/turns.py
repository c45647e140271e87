"""
One competitor's side of a benchmark: a process that loads its library, then waits for its turns.

Each competitor has a process of its own, because thread pools and their settings are a process's; only one computes at a time.

In:  commands on standard input, a JSON object a line      Out: an answer each on standard output, likewise

    {"take": NAME, "texts": […], "vectors": FILE}   remember some texts, compute them once to warm up, write their vectors to a .npy file
    {"run": NAME}                                   compute them again; answers {"seconds": …}, and what else it has to say
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy


class Competitor(Protocol):
    """What computes vectors."""

    def about(self) -> Mapping[str, Any]:
        """What the report should say of it."""
        ...

    def prepare(self, texts: Sequence[str]) -> None:
        """Do what is only done once for such texts."""
        ...

    def encode(self, texts: Sequence[str]) -> Any:
        """Vectors of unit length, [len(texts), width]."""
        ...


def take_turns(competitor: Competitor) -> None:
    """Obey until standard input ends."""
    # Libraries print what they like: only answers may go where answers are read.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    kept: dict[str, Sequence[str]] = {}
    answers.write(json.dumps(dict(competitor.about())) + "\n")
    for line in sys.stdin:
        command = json.loads(line)
        if "take" in command:
            kept[command["take"]] = command["texts"]
            competitor.prepare(command["texts"])
            numpy.save(command["vectors"], numpy.asarray(competitor.encode(command["texts"]), dtype=numpy.float32))
            answers.write(json.dumps(dict(competitor.about())) + "\n")
        else:
            begun = time.perf_counter()
            competitor.encode(kept[command["run"]])
            answers.write(json.dumps({"seconds": time.perf_counter() - begun}) + "\n")
