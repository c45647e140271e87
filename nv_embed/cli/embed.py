"""
`nv-embed embed`: lines in, vectors out.

A thread reads ahead by a few pages; what it has read is embedded in one go and written before more is taken. So a pipe of any length needs little
memory, a slow one is answered line by line, and a fast one in full pages.

In:  UTF-8 lines on stdin      Out: one JSON array a line on stdout, in the order of the lines; `null` for a blank line
"""

import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from nv_embed.cli.credentials import CaOption, CertificateOption, KeyOption, TokenFileOption, TokenWithoutTlsOption, credentials
from nv_embed.cli.failure import Failure
from nv_embed.limits import MAX_TEXT_BYTES

if TYPE_CHECKING:
    from nv_embed.client import Client, Page

# A few of the client's pages: enough that it always has the next one under way.
LINES_AT_ONCE = 2048
BYTES_AT_ONCE = 4 * 1024 * 1024


class InputType(StrEnum):
    passage = "passage"
    query = "query"


class Truncate(StrEnum):
    NONE = "NONE"
    START = "START"
    END = "END"


@dataclass(frozen=True)
class Line:
    """A line of the input: its number, from 1, its text and its length in bytes."""

    number: int
    text: str
    size: int


def embed(
    endpoint: Annotated[
        str | None, typer.Option(help="The sidecar: host:port, or unix:/path.  [default: the private one]", show_default=False)
    ] = None,
    dim: Annotated[int | None, typer.Option(help="Dimensions.  [default: the model's own]", show_default=False)] = None,
    input_type: Annotated[InputType, typer.Option(help="Whether lines are what is searched, or what is asked.")] = InputType.passage,
    model: Annotated[str | None, typer.Option(help="The model.  [default: the sidecar's]", show_default=False)] = None,
    truncate: Annotated[
        Truncate, typer.Option(case_sensitive=False, help="What to do with a line over the model's limit; NONE is to refuse it.")
    ] = Truncate.NONE,
    token_file: TokenFileOption = None,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
    token_without_tls: TokenWithoutTlsOption = False,
) -> None:
    """Embed lines of stdin. One JSON array a line; null for a blank line."""
    # Looked at before anything is opened: where stdin is closed, that takes its number, and would be read.
    if sys.stdin is None:
        raise Failure("stdin is closed: give it lines, as in `nv-embed embed < FILE`")
    from nv_embed.client import Client

    if endpoint is None:
        from nv_embed.cli.private import servers

        endpoint = servers().endpoint()
    with Client(endpoint, **credentials(token_file, ca, certificate, key, token_without_tls)) as client:
        embedding = Embedding(client, dim, input_type.value, model, truncate.value)
        try:
            for lines in _with_progress(_batches()):
                sys.stdout.buffer.writelines(embedding.rows(lines))
                sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Whoever read has enough. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Embedding:
    """The vectors of a run, all by the same revision of one model."""

    def __init__(self, client: "Client", dim: int | None, input_type: str, model: str | None, truncate: str) -> None:
        self._client = client
        self._dim = dim
        self._input_type = input_type
        self._model = model
        self._truncate = truncate
        self._revision: str | None = None

    def rows(self, lines: list[Line]) -> Iterator[bytes]:
        """One line of output a line of input."""
        said = [line for line in lines if line.text.strip()]
        found = self._found(said)
        for line in lines:
            yield next(found) if line.text.strip() else b"null\n"

    def _found(self, lines: list[Line]) -> Iterator[bytes]:
        from nv_embed.errors import EmbedError

        try:
            for page in self._client.embed_pages(
                [line.text for line in lines],
                dim=self._dim,
                input_type=self._input_type,
                model=self._model,
                revision=self._revision,
                truncate=self._truncate,
            ):
                self._revision = page.revision
                yield from _json_rows(page)
        except EmbedError as error:
            if error.position is None:
                raise
            hint = f" ({error.hint})" if error.hint else ""
            raise Failure(f"line {lines[error.position].number}: {error.message}{hint}") from None


def _json_rows(page: "Page") -> Iterator[bytes]:
    import orjson

    try:
        import numpy
    except ImportError:
        # Nine digits are all that a float32 has; as a Python float it would be written with seventeen.
        for row in page.rows():
            yield orjson.dumps([float(f"{value:.9g}") for value in row], option=orjson.OPT_APPEND_NEWLINE)
        return
    for vector in numpy.frombuffer(page.vectors, dtype="<f4").reshape(page.count, page.dim):
        yield orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)


class Intake:
    """Lines that were read and not yet taken; the reader waits when there are many."""

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._size = 0
        self._ended = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()

    def put(self, line: Line) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._lines) < LINES_AT_ONCE and self._size < BYTES_AT_ONCE)
            self._lines.append(line)
            self._size += line.size
            self._changed.notify_all()

    def end(self, failure: Exception | None = None) -> None:
        """No more lines come, because of a bad one or of the reader if a failure is given."""
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify_all()

    def take(self) -> list[Line]:
        """All there is, as soon as there is anything; empty at the end. Lines before a bad one are answered before it is complained of."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended)
            lines, self._lines, self._size = self._lines, [], 0
            self._changed.notify_all()
            if not lines and self._failure is not None:
                raise self._failure
            return lines


def _batches() -> Iterator[list[Line]]:
    intake = Intake()
    # A daemon: when the run fails, nobody waits for a terminal's next line.
    threading.Thread(target=_read, args=(intake,), daemon=True).start()
    while lines := intake.take():
        yield lines


def _read(intake: Intake) -> None:
    number = 0
    try:
        # Not sys.stdin: the interpreter closes that one at its end, and would fall over a thread that still reads.
        stream = open(0, "rb", closefd=False)  # noqa: SIM115 - never closed, by number
        # One more than a text may have, and its line end.
        while raw := stream.readline(MAX_TEXT_BYTES + 2):
            number += 1
            intake.put(parse_line(number, raw))
        intake.end()
    except OSError as error:
        intake.end(Failure(f"cannot read line {number + 1}: {error.strerror}"))
    except Exception as error:  # noqa: BLE001, whoever takes the lines raises it
        intake.end(error)


def parse_line(number: int, raw: bytes) -> Line:
    """A line of the input without its end.

    Raises:
        Failure: it is over the limit, or not UTF-8.
    """
    text = raw.removesuffix(b"\n").removesuffix(b"\r")
    if len(text) > MAX_TEXT_BYTES:
        raise Failure(f"line {number} has more than {MAX_TEXT_BYTES:,} bytes, the limit of a text: cut it first, and embed its pieces")
    try:
        return Line(number, text.decode(), len(raw))
    except UnicodeDecodeError as error:
        raise Failure(f"line {number} is not UTF-8, from its byte {error.start + 1} on: convert it with iconv") from None


def _with_progress(batches: Iterator[list[Line]]) -> Iterator[list[Line]]:
    """The same batches, with a bar on stderr where somebody sees it and stdout is not in its way."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield from batches
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from nv_embed.cli.screen import errors

    status = os.fstat(0)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("0 lines", total=status.st_size if stat.S_ISREG(status.st_mode) else None)
        for lines in batches:
            yield lines
            progress.update(task, advance=sum(line.size for line in lines), description=f"{lines[-1].number:,} lines")
