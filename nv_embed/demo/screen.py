"""
What the demo shows while it works and when it is done.

On a terminal: colours, a progress bar, tables as wide as the window. Elsewhere: plain lines, now and then one on how far it is. What is meant for
people goes to stdout, or to stderr when stdout is a program's.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 140
MOST_WIDTH = 140

PLAIN_EVERY_S = 5.0


class Screen:
    """Where the demo talks to people."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        self.console = Console(stderr=to_stderr, highlight=False)
        self.is_terminal = self.console.is_terminal
        if self.is_terminal:
            self.console.width = min(self.console.width, MOST_WIDTH)
        else:
            self.console.width = PLAIN_WIDTH

    def line(self, text: str = "", style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)
        # Whoever reads a file of ours while we work wants to see how far we are.
        self.console.file.flush()

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, "bold")

    def done(self, text: str) -> None:
        self.console.print(Text.assemble(("✓ ", "green"), text) if self.is_terminal else Text(text), soft_wrap=True)
        self.console.file.flush()

    def failed(self, text: str) -> None:
        fail(text)

    @contextmanager
    def busy(self, doing: str) -> Iterator[Callable[[str], None]]:
        """A step of unknown length; the block may say what it does now."""
        if not self.is_terminal:
            yield lambda _: None
            return
        with self.console.status(doing) as status:
            yield status.update

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A step over `total` things; the block says how many it has done in all."""
        with self._bar(total, unit) if self.is_terminal else self._lines(total, unit) as update:
            yield update

    @contextmanager
    def _bar(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        columns = (
            SpinnerColumn(),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        begun = time.monotonic()
        with Progress(*columns, console=self.console, transient=True, expand=True) as progress:
            task = progress.add_task("", total=total, pace=unit)

            def update(done: int) -> None:
                progress.update(task, completed=done, pace=f"{done / (time.monotonic() - begun):,.0f} {unit}/s")

            yield update

    @contextmanager
    def _lines(self, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        begun = said = time.monotonic()

        def update(done: int) -> None:
            nonlocal said
            now = time.monotonic()
            if now - said >= PLAIN_EVERY_S and done < total:
                said = now
                self.line(f"{done:,} of {total:,} {unit}, {done / (now - begun):,.0f} {unit}/s")

        yield update

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Text | str]], *, widths: Sequence[int] = (), numbers: bool = False) -> None:
        """A table. `numbers`: all columns but the first are. `widths`: shares of the whole; the first column is wrapped, the others are cut."""
        table = Table(box=box.SIMPLE_HEAD if self.is_terminal else None, expand=bool(widths), pad_edge=False, header_style="bold")
        for place, column in enumerate(columns):
            table.add_column(
                column,
                ratio=widths[place] if widths else None,
                justify="right" if numbers and place else "left",
                no_wrap=place > 0,
                overflow="ellipsis" if place else "fold",
            )
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def fail(line: str) -> None:
    """The one line of a step that failed."""
    print(f"nv-embed: {line}", file=sys.stderr)
