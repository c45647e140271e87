"""
Ten minutes of everything at once.

A real sidecar and clients in processes: queries, bulk, long texts and streams, some with deadlines too short to be met, some cancelled, some
abandoned half-way; every few seconds a client is killed and another takes its place. At the end every answer must have been right, every call over in
time, the sidecar's memory where it was after the warm-up, its queue empty, and its end clean.

    bench/soak.py BEIR_DIR… [--minutes 10] [--clients 6] [--model minilm] [--precision auto] [--device auto]

Exit code 1 if something did not hold.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "competitors"), str(Path(__file__).parent.parent / "tests")]

import grpc
import numpy
from machine import keep, load_average, machine, percentile, table
from numpy.typing import NDArray
from servers import Sidecar, running_sidecar, shared_folder

from nv_embed import channels
from nv_embed.client import Client
from nv_embed.errors import DeadlineExceeded, InvalidInput, Overloaded
from nv_embed.evaluation.collection import read
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

Vectors = NDArray[numpy.float32]

SPAWN = multiprocessing.get_context("spawn")
TEXTS = 300
LONG_TEXTS = 12
LONG_CHARS = 40_000
CALL_S = 60.0
SHORT_S = 0.2
GRACE_S = 1.0
KILL_EVERY_S = 5.0
WORD_EVERY_S = 30.0
LOOK_EVERY_S = 0.5
IDLE_QUERIES = 100
MOST_GROWTH = 0.05
LEAST_COSINE = {"fp32": 1 - 1e-5, "bf16": 0.9999, "int8": 0.999}

ANSWERED, CANCELLED, LATE, REFUSED, OVERLOADED, FAILED = "answered", "cancelled", "deadline", "refused", "overloaded", "failed"
ENDINGS = (ANSWERED, CANCELLED, LATE, REFUSED, OVERLOADED, FAILED)


@dataclass(frozen=True)
class Texts:
    """Texts of one kind, and what their vectors must be."""

    texts: Sequence[str]
    vectors: Vectors


@dataclass(frozen=True)
class Outcome:
    """How one call ended.

    Attributes:
        overrun_s: how long after its deadline.
        exact: vectors that are equal to the last bit.
        cosine: the least, of the others.
        what: the error, if it was none of those that may be.
    """

    kind: str
    outcome: str
    seconds: float
    overrun_s: float = 0.0
    vectors: int = 0
    exact: int = 0
    cosine: float = 1.0
    what: str = ""


@dataclass(frozen=True)
class Reference:
    """The vectors of some texts by the engine alone."""

    device: str
    precision: str
    vectors: dict[str, Vectors]


@dataclass
class Watched:
    """The sidecar's process over time: resident megabytes, open files and threads."""

    pid: int
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def look(self) -> None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        self.memory.append(int(status["VmRSS"].split()[0]) / 1024)
        self.threads.append(int(status["Threads"]))
        self.files.append(len(list(Path(f"/proc/{self.pid}/fd").iterdir())))

    def tenths(self) -> list[float]:
        """Median of the memory in each tenth of the time."""
        count = len(self.memory)
        return [statistics.median(self.memory[part * count // 10 : (part + 1) * count // 10]) for part in range(min(10, count))]

    def growth(self) -> float:
        """Of the memory, from the first tenth to the last."""
        tenths = self.tenths()
        return tenths[-1] / tenths[0] - 1


@dataclass(frozen=True)
class Check:
    """Whether something that must hold did, and the figures."""

    name: str
    held: bool
    figures: str


@dataclass(frozen=True)
class Around:
    """What happened besides the calls.

    Attributes:
        stragglers: clients that did not end by themselves.
        idle_ms, after_ms: a query's time on the idle sidecar, before and after.
        status, stop_s: how the sidecar ended, and how long it took to.
    """

    killed: int
    stragglers: int
    idle_ms: float
    after_ms: float
    status: int
    stop_s: float


class Caller:
    """One client's calls, each with its check."""

    def __init__(self, address: str, texts: Mapping[str, Texts], draw: random.Random) -> None:
        self._client = Client(address, timeout_s=CALL_S)
        self._stub = EmbedderStub(grpc.insecure_channel(channels.target(address), options=channels.options(address)))
        self._texts = texts
        self._draw = draw
        self._kinds: dict[str, tuple[int, Callable[[str], Outcome]]] = {
            "query": (10, lambda kind: self._ask(kind, "query", 1, CALL_S)),
            "bulk": (6, lambda kind: self._ask(kind, "passage", self._draw.randint(8, 96), CALL_S)),
            "long texts": (1, lambda kind: self._ask(kind, "long", self._draw.randint(1, 3), CALL_S)),
            "stream": (2, self._stream),
            "short deadline": (3, lambda kind: self._ask(kind, "passage", self._draw.randint(1, 64), self._draw.uniform(0.001, SHORT_S))),
            "cancelled": (3, self._cancel),
            "abandoned": (1, self._abandon),
            "too long": (1, self._exceed),
        }

    def __call__(self) -> Outcome:
        """One call of a random kind."""
        (kind,) = self._draw.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])
        begun = time.monotonic()
        try:
            return self._kinds[kind][1](kind)
        except Overloaded as error:
            time.sleep(min(error.retry_after_s or 0.1, 2.0))
            return Outcome(kind, OVERLOADED, time.monotonic() - begun)
        except grpc.RpcError as error:
            overloaded = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return Outcome(kind, OVERLOADED if overloaded else FAILED, time.monotonic() - begun, what="" if overloaded else str(error.code()))
        except Exception as error:  # noqa: BLE001 - whatever else comes out is what the report is about
            return Outcome(kind, FAILED, time.monotonic() - begun, what=f"{type(error).__name__}: {error}")

    def _ask(self, kind: str, of: str, count: int, timeout_s: float) -> Outcome:
        positions, texts = self._drawn(of, count)
        input_type = "query" if of == "query" else "passage"
        begun = time.monotonic()
        try:
            pages = list(self._client.embed_pages(texts, truncate="END", input_type=input_type, timeout_s=timeout_s))
        except DeadlineExceeded:
            return self._late(kind, begun, timeout_s)
        rows = b"".join(page.vectors for page in pages)
        # The timeout is a page's, and every other page begins when one is there.
        return self._checked(kind, of, positions, rows, begun, timeout_s * len(pages))

    def _stream(self, kind: str) -> Outcome:
        positions, texts = self._drawn("passage", 48)
        begun = time.monotonic()
        requests = (self._request(texts[start : start + 12]) for start in range(0, len(texts), 12))
        rows = b"".join(answer.vectors for answer in self._stub.EmbedStream(requests, timeout=CALL_S))
        return self._checked(kind, "passage", positions, rows, begun, CALL_S)

    def _cancel(self, kind: str) -> Outcome:
        positions, texts = self._drawn("passage", self._draw.randint(1, 128))
        begun = time.monotonic()
        answer = self._stub.Embed.future(self._request(texts), timeout=CALL_S)
        time.sleep(self._draw.uniform(0, SHORT_S))
        if answer.cancel():
            return Outcome(kind, CANCELLED, time.monotonic() - begun)
        return self._checked(kind, "passage", positions, answer.result().vectors, begun, CALL_S)

    def _abandon(self, kind: str) -> Outcome:
        """Leave after the first of some pages, while others are under way."""
        _, texts = self._drawn("passage", 250)
        begun = time.monotonic()
        pages = self._client.embed_pages(texts, truncate="END")
        next(pages)
        pages.close()  # type: ignore[attr-defined]
        return Outcome(kind, CANCELLED, time.monotonic() - begun)

    def _exceed(self, kind: str) -> Outcome:
        _, texts = self._drawn("long", 1)
        begun = time.monotonic()
        try:
            list(self._client.embed_pages(texts))
        except InvalidInput:
            return Outcome(kind, REFUSED, time.monotonic() - begun)
        return Outcome(kind, FAILED, time.monotonic() - begun, what="a text over the limit was not refused")

    def _late(self, kind: str, begun: float, timeout_s: float) -> Outcome:
        seconds = time.monotonic() - begun
        if timeout_s == CALL_S:
            return Outcome(kind, FAILED, seconds, what=f"no answer within {CALL_S:g} s")
        return Outcome(kind, LATE, seconds, overrun_s=seconds - timeout_s)

    def _checked(self, kind: str, of: str, positions: Sequence[int], rows: bytes, begun: float, timeout_s: float) -> Outcome:
        seconds = time.monotonic() - begun
        expected = self._texts[of].vectors[positions]
        vectors = numpy.frombuffer(rows, dtype="<f4").reshape(expected.shape)
        exact = int((vectors == expected).all(axis=1).sum())
        cosine = float(numpy.einsum("nd,nd->n", vectors, expected, dtype=numpy.float64).min())
        return Outcome(kind, ANSWERED, seconds, seconds - timeout_s, len(positions), exact, cosine)

    def _drawn(self, of: str, count: int) -> tuple[list[int], list[str]]:
        texts = self._texts[of].texts
        positions = self._draw.choices(range(len(texts)), k=count)
        return positions, [texts[position] for position in positions]

    def _request(self, texts: Sequence[str]) -> pb.EmbedRequest:
        return pb.EmbedRequest(texts=texts, truncate=pb.TRUNCATE_END)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEIR_DIR")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if not options.folders:
        print("skipped: give folders in BEIR's layout with the texts to embed")
        return
    before = load_average()
    texts = chosen(options.folders)
    with ProcessPoolExecutor(1, SPAWN) as engine:
        reference = engine.submit(compute, texts, options.model, options.precision, options.device).result()
    with shared_folder() as folder:
        (folder / "texts.json").write_text(json.dumps(texts))
        numpy.savez(folder / "vectors.npz", **reference.vectors)  # type: ignore[arg-type]
        arguments = ("--model", options.model, "--device", options.device, "--precision", reference.precision)
        with running_sidecar(folder, *arguments) as sidecar:
            model = str(sidecar.ready["models"][0])
            around, watched = soak(sidecar, folder, 60 * options.minutes, options.clients)
        outcomes = read_outcomes(folder)
    checks = check(outcomes, around, watched, reference.precision)
    result = report(options, f"{model} {reference.precision}", checks, outcomes, watched, before)
    keep(f"soak-{model}", result, reference.device)
    print(result)
    sys.exit(0 if all(each.held for each in checks) else 1)


def chosen(folders: Sequence[Path]) -> dict[str, list[str]]:
    draw = random.Random(7)
    collections = [read(folder) for folder in folders]
    passages = [text for collection in collections for text in collection.passages()]
    queries = [text for collection in collections for text in collection.queries.values()]
    endless = itertools.cycle(passages)
    return {
        "passage": draw.sample(passages, min(TEXTS, len(passages))),
        "query": draw.sample(queries, min(TEXTS, len(queries))),
        "long": [long_text(endless) for _ in range(LONG_TEXTS)],
    }


def long_text(passages: Iterator[str]) -> str:
    text = ""
    while len(text) < LONG_CHARS:
        text += next(passages) + "\n"
    return text


def compute(texts: Mapping[str, Sequence[str]], model: str, precision: str, device: str) -> Reference:
    """What the answers must be, by the engine without a server; in a process of its own, which ends and leaves the machine to the sidecar."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from engine import encode
    from nv_embed_sidecar.models import load
    from nv_embed_sidecar.settings import Settings
    from nv_embed_sidecar.tokenising import InputType

    (loaded,) = load(Settings.model_validate({"models": (model,), "precision": precision, "device": device}))
    types = {"passage": InputType.PASSAGE, "query": InputType.QUERY, "long": InputType.PASSAGE}
    vectors = {kind: encode(loaded, of_kind, types[kind]) for kind, of_kind in texts.items()}
    return Reference(loaded.engine.device, loaded.engine.precision, vectors)


def soak(sidecar: Sidecar, folder: Path, seconds: float, clients: int) -> tuple[Around, Watched]:
    """Put the sidecar under load, and end it."""
    assert sidecar.process is not None
    watched = Watched(sidecar.process.pid)
    idle = idle_ms(sidecar.address, folder)
    killed, stragglers = load_up(sidecar.address, folder, watched, seconds, clients)
    after = idle_ms(sidecar.address, folder)
    begun = time.monotonic()
    sidecar.signal(SIGTERM)
    status = sidecar.wait()
    return Around(killed, stragglers, idle, after, status, time.monotonic() - begun), watched


def load_up(address: str, folder: Path, watched: Watched, seconds: float, clients: int) -> tuple[int, int]:
    """The load: how many clients were killed, and how many had to be because they did not end by themselves."""
    draw = random.Random(7)
    numbers = itertools.count()
    running = [begin(address, folder, next(numbers)) for _ in range(clients)]
    started = time.monotonic()
    warm, end = started + min(60.0, seconds / 5), started + seconds
    next_kill = started + KILL_EVERY_S
    killed, next_word = 0, started
    while (now := time.monotonic()) < end:
        if now > warm:
            watched.look()
        if now > next_kill:
            victim = draw.randrange(len(running))
            running[victim].kill()
            running[victim].join()
            running[victim] = begin(address, folder, next(numbers))
            killed, next_kill = killed + 1, now + draw.uniform(0.5, 1.5) * KILL_EVERY_S
        if now > next_word:
            print(f"{now - started:.0f} of {seconds:.0f} s, {killed} clients killed", file=sys.stderr, flush=True)
            next_word += WORD_EVERY_S
        time.sleep(LOOK_EVERY_S)
    (folder / "stop").touch()
    deadline = time.monotonic() + CALL_S + 10 * GRACE_S
    for process in running:
        process.join(max(deadline - time.monotonic(), 0))
    stragglers = [process for process in running if process.is_alive()]
    for process in stragglers:
        process.kill()
        process.join()
    return killed, len(stragglers)


def begin(address: str, folder: Path, number: int) -> multiprocessing.process.BaseProcess:
    process = SPAWN.Process(target=call, args=(address, folder, number), daemon=True)
    process.start()
    return process


def call(address: str, folder: Path, number: int) -> None:
    """One client, until `stop` is there. It shares nothing with the others but files: a lock would die with whoever is killed."""
    caller = Caller(address, read_texts(folder), random.Random(number))
    with (folder / f"client-{number}.jsonl").open("a", buffering=1) as said:
        while not (folder / "stop").exists():
            said.write(json.dumps(asdict(caller())) + "\n")


def read_texts(folder: Path) -> dict[str, Texts]:
    vectors = numpy.load(folder / "vectors.npz")
    return {kind: Texts(texts, vectors[kind]) for kind, texts in json.loads((folder / "texts.json").read_text()).items()}


def read_outcomes(folder: Path) -> list[Outcome]:
    """What all clients said; the last line of one that was killed may be half a line."""
    lines = [line for file in folder.glob("client-*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
    return [Outcome(**json.loads(line)) for line in lines]


def idle_ms(address: str, folder: Path) -> float:
    """Median milliseconds of a query when nothing else is asked."""
    texts = read_texts(folder)["query"].texts
    taken = []
    with Client(address) as client:
        for text in itertools.islice(itertools.cycle(texts), IDLE_QUERIES):
            begun = time.perf_counter()
            list(client.embed_pages([text], truncate="END", input_type="query"))
            taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken)


def check(outcomes: Sequence[Outcome], around: Around, watched: Watched, precision: str) -> list[Check]:
    answered = [outcome for outcome in outcomes if outcome.outcome == ANSWERED]
    vectors, exact = sum(outcome.vectors for outcome in answered), sum(outcome.exact for outcome in answered)
    cosine = min((outcome.cosine for outcome in answered), default=0.0)
    failed = Counter(outcome.what for outcome in outcomes if outcome.outcome == FAILED)
    overrun = max((outcome.overrun_s for outcome in outcomes), default=0.0)
    growth = watched.growth()
    return [
        Check(
            "every vector is right",
            cosine >= LEAST_COSINE[precision],
            f"{vectors:,} vectors, {exact / max(vectors, 1):.2%} equal to the last bit, least cosine {cosine:.7f}",
        ),
        Check(
            "no call failed otherwise than asked for",
            not failed,
            "; ".join(f"{count} × {what}" for what, count in failed.most_common(5)) or f"{len(outcomes):,} calls, {around.killed} clients killed",
        ),
        Check(
            f"no call outlived its deadline by {GRACE_S:g} s",
            overrun <= GRACE_S and not around.stragglers,
            f"at most {max(overrun, 0):.2f} s; {around.stragglers} clients did not end by themselves",
        ),
        Check(
            f"memory grew by less than {MOST_GROWTH:.0%}",
            growth <= MOST_GROWTH,
            f"{growth:+.1%}, by tenths of the time {', '.join(f'{megabytes:.0f}' for megabytes in watched.tenths())} MB;"
            f" files {watched.files[0]} to {watched.files[-1]}, threads {watched.threads[0]} to {watched.threads[-1]}",
        ),
        Check(
            "the sidecar is idle afterwards",
            around.after_ms <= 2 * around.idle_ms + 5,
            f"a query takes {around.after_ms:.1f} ms, before the load {around.idle_ms:.1f} ms",
        ),
        Check("it ends cleanly", around.status == 0, f"status {around.status} after {around.stop_s:.1f} s"),
    ]


def report(
    options: argparse.Namespace,
    model: str,
    checks: Sequence[Check],
    outcomes: Sequence[Outcome],
    watched: Watched,
    before: float,
) -> str:
    kinds = sorted({outcome.kind for outcome in outcomes})
    endings = [name for name in ENDINGS if any(outcome.outcome == name for outcome in outcomes)]
    lines = [
        f"# soak, {model}",
        "",
        f"{options.minutes:g} minutes, {options.clients} clients at a time; {len(watched.memory)} looks at the sidecar after the warm-up.",
        "",
        *(f"- {'held' if each.held else '**FAILED**'}: {each.name}: {each.figures}" for each in checks),
        "",
        table(("calls", *endings, "p50, ms", "p95, ms", "longest, ms"), (row(kind, endings, outcomes) for kind in kinds)),
        "",
        f"- {machine()}; load average before: {before:.1f}",
        "",
    ]
    return "\n".join(lines)


def row(kind: str, endings: Sequence[str], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    of_kind = [outcome for outcome in outcomes if outcome.kind == kind]
    counts: Any = Counter(outcome.outcome for outcome in of_kind)
    seconds = [outcome.seconds for outcome in of_kind]
    return (kind, *(f"{counts[ending]:,}" for ending in endings), *(f"{1000 * percentile(seconds, percent):.0f}" for percent in (50, 95, 100)))


if __name__ == "__main__":
    main()
