"""
The demo: Python's own documentation, searched by meaning.

Servers up; the texts into a table that embeds itself; questions in plain English, answered by meaning and, side by side, by Postgres's full-text
search; what came out of it, in numbers. It leaves nothing behind: neither its table nor the servers, unless they ran before or shall be kept.

In:  nothing      Out: a report for people, or one JSON document for programs
"""

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg
from rich.text import Text

from nv_embed import home
from nv_embed.client import Client
from nv_embed.credentials import from_environment
from nv_embed.demo import corpus, questions
from nv_embed.demo.corpus import Entry
from nv_embed.demo.questions import Question
from nv_embed.demo.screen import Screen, fail
from nv_embed.evaluation.scoring import hit_rate, place_of_first_right
from nv_embed.interrupts import interrupted_by_termination, uninterrupted

K = 5
DIM = 384
"""The width of the stored vectors, where the model was trained for it; else its native one."""

PAGE_ROWS = 128

Connection = psycopg.Connection[tuple[Any, ...]]


class DemoFailed(Exception):
    """A step failed; the message is the one line that people read. Empty where a program that we ran has said it already."""


@dataclass(frozen=True)
class Running:
    """The private servers that the demo uses.

    Attributes:
        left: what could not be put away, which has been said.
    """

    dsn: str
    endpoint: str
    left: list[str]


@dataclass(frozen=True)
class Model:
    name: str
    revision: str
    max_tokens: int
    native_dim: int
    trained_dims: Sequence[int]
    device: str

    @property
    def dim(self) -> int:
        return DIM if DIM in self.trained_dims else self.native_dim


@dataclass(frozen=True)
class Hit:
    name: str
    score: float


@dataclass(frozen=True)
class Found:
    """What one way of searching found for one question.

    Attributes:
        place: the place of the first right answer, from 1; None where there is none among the hits.
    """

    hits: Sequence[Hit]
    place: int | None
    seconds: float


@dataclass(frozen=True)
class Answered:
    question: Question
    by_meaning: Found
    by_words: Found


@dataclass(frozen=True)
class Loaded:
    """How the texts were read and embedded.

    Attributes:
        too_long: texts over the model's limit, of which the end was cut off.
    """

    rows: int
    read_s: float
    load_s: float
    too_long: int

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.load_s


def demo(*, keep: bool = False, json_output: bool = False, limit: int | None = None, model: str | None = None) -> int:
    """Run the demo.

    Args:
        keep: leave the table and the servers.
        json_output: print one JSON document on stdout instead of a report; what is said meanwhile goes to stderr.
        limit: at most so many texts, the right answers first.
        model: what the sidecar serves, as `nv-embed up` takes it.
    Returns:
        The program's exit status: 0, 1 for a failure, also to put everything away, 130 when interrupted.
    """
    screen = Screen(to_stderr=json_output)
    left: list[str] = []
    try:
        with interrupted_by_termination():
            run(screen, left, keep=keep, json_output=json_output, limit=limit, model=model)
    except DemoFailed as failure:
        if str(failure):
            fail(str(failure))
        return 1
    except KeyboardInterrupt:
        fail("interrupted" if keep or left else "interrupted; what the demo made is put away")
        return 130
    return 1 if left else 0


def run(screen: Screen, left: list[str], *, keep: bool, json_output: bool, limit: int | None, model: str | None) -> None:
    asked = questions.read()
    with private_servers(screen, left, keep=keep, model=model) as running, psycopg.connect(running.dsn, autocommit=True) as connection:
        if not _one(connection, "lock")[0]:
            raise DemoFailed("another demo is at work on these servers: wait for it to end")
        served = Model(*_one(connection, "model"))
        begun = time.perf_counter()
        with screen.busy("Reading the documentation of Python's standard library"):
            every = corpus.read()
        read_s = time.perf_counter() - begun
        entries = select(every, asked, limit)
        screen.heading("Texts")
        screen.done(
            f"{len(every):,} docstrings of the standard library of Python {platform.python_version()}, read in {read_s:.1f} s: {count_kinds(every)}."
            + (f" {len(entries):,} of them are used." if len(entries) < len(every) else "")
        )
        with table(connection, running, keep=keep):
            connection.execute(_sql("declare"), {"dim": served.dim})
            too_long = count_too_long(running.endpoint, entries, served)
            load_s = load(screen, connection, entries)
            loaded = Loaded(len(entries), read_s, load_s, too_long)
            screen.done(
                f"Copied into a table that embeds itself: {loaded.rows:,} rows in {load_s:.1f} s, {loaded.rows_per_s:,.0f} rows/s. "
                f"{too_long:,} texts were longer than the model's {served.max_tokens} tokens and were cut there."
            )
            connection.execute(_sql("words"))
            answered = answer(screen, connection, asked)
            if json_output:
                print(json.dumps(as_document(served, loaded, answered), indent=2, ensure_ascii=False))
            else:
                show_answers(screen, answered)
                show_summary(screen, served, loaded, answered)
                show_how_to_go_on(screen, keep=keep)


# The servers


@contextmanager
def private_servers(screen: Screen, left: list[str], *, keep: bool, model: str | None) -> Iterator[Running]:
    """The servers of `nv-embed up`. Those that the demo started are stopped again, unless one ran before or they shall be kept.

    Raises:
        DemoFailed: they do not start, or a sidecar runs that does not serve the model.
    """
    before = _status()
    ran_before = before["postgres"]["running"] or before["sidecar"]["running"]
    if before["sidecar"]["running"]:
        _check_serves(before["sidecar"], model)
        model = None  # it stays as it is, with all that it was told
    try:
        screen.heading("Servers")
        _up(screen, model)
        now = _status()
        if not now["up"]:
            raise DemoFailed("the servers are not well after `nv-embed up`: `nv-embed doctor` says why")
        yield Running(now["dsn"], now["endpoint"], left)
    finally:
        if not (keep or ran_before):
            with screen.busy("Stopping the servers"), uninterrupted():
                if _nv_embed("down", check=False, stdout=subprocess.DEVNULL).returncode:
                    left.append("the servers")
            if not left:
                screen.line()
                screen.done("The table and the servers are put away.")


def _check_serves(sidecar: Mapping[str, Any], model: str | None) -> None:
    """Refuse a model that another sidecar would have to be started for: the tables of whoever uses this one would be without theirs."""
    if model is None:
        return
    asked_for = str(Path(model).resolve()) if Path(model).is_dir() else model
    if asked_for not in (sidecar["asked_for"], *sidecar["models"]):
        raise DemoFailed(f"a sidecar runs here that serves {sidecar['models'][0]}: leave --model out to use that one, or run `nv-embed down` first")


def _up(screen: Screen, model: str | None) -> None:
    arguments = ["up", *(["--model", model] if model else [])]
    with screen.busy("Starting the servers") as say, subprocess.Popen([*_PROGRAM, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # What follows the first empty line is how to go on with `up` alone.
        is_report = True
        for line in process.stdout:
            is_report = is_report and bool(line.strip())
            if is_report and line.rstrip().endswith("…"):
                say(line.rstrip())
            elif is_report:
                screen.done(line.rstrip())
    if process.returncode:
        raise DemoFailed("")


def _status() -> Any:
    """What `nv-embed status` says. The command line is a program to us: it calls the demo, not the other way round."""
    said = _nv_embed("status", "--json", check=False, stdout=subprocess.PIPE).stdout
    try:
        return json.loads(said)
    except ValueError:
        raise DemoFailed("`nv-embed status` does not answer: `nv-embed doctor` says why") from None


_PROGRAM = [sys.executable, "-m", "nv_embed.cli"]


def _nv_embed(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_PROGRAM, *arguments], text=True, stdin=subprocess.DEVNULL, **options)


# The texts


def select(entries: Sequence[Entry], asked: Sequence[Question], limit: int | None) -> list[Entry]:
    """All texts, or at most `limit`: those that answer a question first."""
    if limit is None or limit >= len(entries):
        return list(entries)
    right = {name for question in asked for name in question.answers()}
    chosen = sorted(entries, key=lambda entry: (entry.name not in right, entry.name))[:limit]
    return sorted(chosen, key=lambda entry: entry.name)


def count_kinds(entries: Sequence[Entry]) -> str:
    plurals = {"module": "modules", "class": "classes", "function": "functions", "method": "methods", "property": "properties"}
    return ", ".join(f"{sum(entry.kind == kind for entry in entries):,} {plural}" for kind, plural in plurals.items())


def text_of(entry: Entry) -> str:
    """The text that declare.sql's template makes."""
    return f"{entry.name}: {entry.doc}"


def count_too_long(endpoint: str, entries: Sequence[Entry], served: Model) -> int:
    with Client(endpoint, **from_environment()) as client:
        return sum(tokens > served.max_tokens for tokens in client.count_tokens([text_of(entry) for entry in entries], model=served.name))


@contextmanager
def table(connection: Connection, running: Running, *, keep: bool) -> Iterator[None]:
    """The demo's table, dropped in the end unless it shall be kept. One that an earlier demo left is replaced, anybody else's is left alone."""
    is_ours = _one(connection, "owner")[0]
    if is_ours is False:
        raise DemoFailed("the private database has a table python_docs that is not the demo's: rename it")
    connection.execute(_sql("drop"))
    try:
        connection.execute(_sql("table"))
        yield
    except BaseException:
        _drop(connection, running)
        raise
    if not keep:
        _drop(connection, running)


def _drop(connection: Connection, running: Running) -> None:
    # A connection of its own, because the demo's may be in the middle of something, or broken.
    with uninterrupted():
        connection.close()
        try:
            with psycopg.connect(running.dsn, autocommit=True) as fresh:
                fresh.execute(_sql("drop"))
        except psycopg.Error as error:
            running.left.append("the table")
            fail(f"the demo's table python_docs is still there, and the next demo drops it: {' '.join(str(error).split())}")


def load(screen: Screen, connection: Connection, entries: Sequence[Entry]) -> float:
    """COPY all texts, page by page; the table's trigger embeds each page. Returns the seconds it took."""
    begun = time.perf_counter()
    with screen.progress(len(entries), "rows") as update:
        for start in range(0, len(entries), PAGE_ROWS):
            page = entries[start : start + PAGE_ROWS]
            with connection.cursor().copy(_sql("load")) as rows:
                for entry in page:
                    rows.write_row((entry.name, entry.kind, entry.signature, entry.doc))
            update(start + len(page))
    return time.perf_counter() - begun


# The questions


def answer(screen: Screen, connection: Connection, asked: Sequence[Question]) -> list[Answered]:
    with screen.busy("Asking"):
        find(connection, "by_meaning", asked[0])  # what a session does once is not what a query takes
        find(connection, "by_words", asked[0])
        return [Answered(each, find(connection, "by_meaning", each), find(connection, "by_words", each)) for each in asked]


def find(connection: Connection, way: str, question: Question) -> Found:
    begun = time.perf_counter()
    rows = connection.execute(_sql(way), {"question": question.ask, "k": K}).fetchall()
    seconds = time.perf_counter() - begun
    hits = [Hit(name, score) for name, score in rows]
    return Found(hits, place_of_first_right([hit.name for hit in hits], question.answers()), seconds)


def recall(found: Sequence[Found], k: int) -> float:
    return hit_rate([each.place for each in found], k)


def median_ms(found: Sequence[Found]) -> float:
    return 1000 * statistics.median(each.seconds for each in found)


# What came out of it


def show_answers(screen: Screen, answered: Sequence[Answered]) -> None:
    screen.heading("Questions and first answers")
    screen.line(f"✓ is right; 2 to {K}: the first answer is not, the one at that place is; ✗: none of the first {K} is. The number is the cosine.")
    screen.line()
    rows = [
        (
            each.question.ask,
            Text.assemble(_mark(each.by_meaning), *((f"{hit.score:.2f} ", "dim") for hit in each.by_meaning.hits[:1]), _first(each.by_meaning)),
            Text.assemble(_mark(each.by_words), _first(each.by_words)),
        )
        for each in answered
    ]
    screen.table(("question", "by meaning: nv_search", "by full text"), rows, widths=(7, 7, 5))


def _mark(found: Found) -> tuple[str, str]:
    if found.place is None:
        return "✗ ", "red"
    return ("✓ ", "green") if found.place == 1 else (f"{found.place} ", "yellow")


def _first(found: Found) -> str:
    return found.hits[0].name if found.hits else "nothing"


def show_summary(screen: Screen, served: Model, loaded: Loaded, answered: Sequence[Answered]) -> None:
    screen.heading(f"{len(answered)} questions over {loaded.rows:,} texts")
    ways = {"by meaning": [each.by_meaning for each in answered], "by full text": [each.by_words for each in answered]}
    rows = [(way, f"{recall(found, 1):.1%}", f"{recall(found, K):.1%}", f"{median_ms(found):.1f} ms") for way, found in ways.items()]
    screen.table(("", "Recall@1", f"Recall@{K}", "median query"), rows, numbers=True)
    screen.line()
    screen.line(f"Recall@k: the share of questions with a right answer among the first k. Embedded at {loaded.rows_per_s:,.0f} rows/s.")
    screen.line(f"Model {served.name}, revision {served.revision}, {served.dim} dimensions, on {served.device}.")


def show_how_to_go_on(screen: Screen, *, keep: bool) -> None:
    program = home.program_name()
    screen.heading("Go on")
    if not keep:
        screen.line(f"  {program} demo --keep      leaves the table and the servers; then:")
    screen.line(f'  psql "$({program} dsn)"')
    screen.line("    SELECT (hit).name, round(score::numeric, 2) FROM nv_search(NULL::python_docs, 'wait for a child process', k => 5);")
    screen.line("    SELECT (hit).name FROM nv_search(NULL::python_docs, 'parse a date', k => 5, filter => $$kind = 'function'$$);")
    screen.line("    INSERT INTO python_docs VALUES ('my.function', 'function', '()', 'Feed the cat.');   -- embedded as it is written")
    screen.line(f"  {program} status · {program} doctor · {program} down")
    screen.line("  docs/quickstart.md: your own table")


def as_document(served: Model, loaded: Loaded, answered: Sequence[Answered]) -> Mapping[str, object]:
    """The report for programs."""
    ways = {"by_meaning": [each.by_meaning for each in answered], "by_full_text": [each.by_words for each in answered]}
    return {
        "version": importlib.metadata.version("nv-embed"),
        "python": platform.python_version(),
        "model": {**asdict(served), "dim": served.dim},
        "corpus": {"rows": loaded.rows, "read_s": round(loaded.read_s, 3), "longer_than_model": loaded.too_long},
        "load": {"seconds": round(loaded.load_s, 3), "rows_per_s": round(loaded.rows_per_s, 1)},
        "questions": len(answered),
        **{
            way: {"recall_at_1": round(recall(found, 1), 4), f"recall_at_{K}": round(recall(found, K), 4), "median_ms": round(median_ms(found), 2)}
            for way, found in ways.items()
        },
        "answers": [
            {
                "question": each.question.ask,
                "right": sorted(each.question.answers()),
                "by_meaning": {"place": each.by_meaning.place, "hits": [asdict(hit) for hit in each.by_meaning.hits]},
                "by_full_text": {"place": each.by_words.place, "hits": [asdict(hit) for hit in each.by_words.hits]},
            }
            for each in answered
        ],
    }


def _one(connection: Connection, name: str) -> tuple[Any, ...]:
    row = connection.execute(_sql(name)).fetchone()
    if row is None:
        raise DemoFailed(f"{name}.sql answers nothing: `nv-embed doctor` says what is wrong")
    return row


def _sql(name: str) -> bytes:
    return Path(__file__).with_name(f"{name}.sql").read_bytes()
