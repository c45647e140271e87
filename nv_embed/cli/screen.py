"""
What a command shows while it works.

On a terminal: a spinner with the time it takes, replaced by one line when the step is done. Elsewhere: plain lines, one when a step begins and one
when it is done.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

PLAIN_WIDTH = 200


class Screen(Console):
    """Rich's console, with lines for programs as long as they are, and work that goes on when nobody reads any more."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, soft_wrap=True)
        if not self.is_terminal:
            self.width = PLAIN_WIDTH

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console = Screen()
errors = Screen(stderr=True)


@contextmanager
def step(doing: str) -> Iterator[Callable[[str], None]]:
    """A step of some seconds. The block calls what it is given with the line that says what was done."""
    if not console.is_terminal:
        plain(f"{doing} …")
        yield plain
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    done: list[str] = []
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(doing, total=None)
        yield done.append
    for line in done:
        console.print(Text.assemble(("✓ ", "green"), line))


def plain(line: str = "") -> None:
    """A line as it is, unwrapped and at once."""
    console.print(Text(line))


def note(line: str) -> None:
    """A remark on stderr."""
    errors.print(Text(line))
