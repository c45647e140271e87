"""
What a command shows while it works.

On a terminal: a spinner with the time it takes, replaced by one line when the step is done. Elsewhere: plain lines, one when a step begins and one
when it is done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


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
        console.print(Text("✓ ", style="green") + Text(line))


def plain(line: str = "") -> None:
    """A line as it is, unwrapped and at once."""
    console.print(Text(line))
    console.file.flush()


def note(line: str) -> None:
    """A remark on stderr."""
    errors.print(Text(line))
