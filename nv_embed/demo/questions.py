"""
The questions, and which names answer them.

In:  questions.toml      Out: `Question`s
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("questions.toml")


@dataclass(frozen=True)
class Question:
    """A question in plain English.

    Attributes:
        right: the names that answer it in every supported Python.
        also: those that do so in the versions that have them.
    """

    ask: str
    right: frozenset[str]
    also: frozenset[str] = frozenset()

    def answers(self) -> frozenset[str]:
        return self.right | self.also


def read() -> list[Question]:
    with FILE.open("rb") as file:
        written = tomllib.load(file)
    return [Question(each["ask"], frozenset(each["right"]), frozenset(each.get("also", ()))) for each in written["question"]]
