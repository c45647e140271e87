"""
What HTTP costs over gRPC: the same texts, by the same sidecar, through each of its doors.

A real sidecar; clients in processes of their own; texts of the standard library's documentation. gRPC, HTTP with vectors in base64, and HTTP with
vectors as numbers take turns: queries one after the other, then as many clients as it takes to keep the engine busy, with pages of passages.

    bench/doors.py [--model fake|minilm|DIR] [--dim N] [--clients 4] [--texts 64] [--phase-s 5] [--rounds 5]
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import httpx
from machine import keep, load_average, machine, percentile, table
from servers import running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.demo import corpus

SPAWN = multiprocessing.get_context("spawn")
QUERIES = 200
SETTLE_S = 1.0

GRPC, BASE64, NUMBERS = "gRPC", "HTTP, base64", "HTTP, numbers"
DOORS = (GRPC, BASE64, NUMBERS)

Ask = Callable[[list[str], str], object]


@dataclass(frozen=True)
class Where:
    """A sidecar's doors, and what is asked of it."""

    grpc: str
    http: str
    dim: int | None

    def opened(self, door: str) -> Ask:
        """What sends texts through a door, and waits for their vectors."""
        if door == GRPC:
            client = Client(self.grpc)
            return lambda texts, input_type: list(client.embed_pages(texts, dim=self.dim, input_type=input_type))
        http = httpx.Client(base_url=f"http://{self.http}", timeout=120)
        said = {"encoding_format": "base64" if door == BASE64 else "float", **({"dimensions": self.dim} if self.dim else {})}

        def ask(texts: list[str], input_type: str) -> object:
            answer = http.post("/v1/embeddings", json={"input": texts, "input_type": input_type, **said})
            answer.raise_for_status()
            return answer.content

        return ask


@dataclass
class Measured:
    """What the rounds gave, by door: seconds of each query, and texts a second."""

    queries: dict[str, list[float]] = field(default_factory=lambda: {door: [] for door in DOORS})
    rates: dict[str, list[float]] = field(default_factory=lambda: {door: [] for door in DOORS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default="fake")
    parser.add_argument("--dim", type=int)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--phase-s", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("options", nargs="*", help="of the sidecar, behind --")
    options = parser.parse_args()
    before, measured = load_average(), Measured()
    with shared_folder() as folder, running_sidecar(folder, "--model", options.model, "--http", "127.0.0.1:0", *options.options) as sidecar:
        where = Where(sidecar.address, sidecar.ready["http"][0], options.dim)
        texts = [entry.doc[:1200] for entry in corpus.read() if len(entry.doc) > 800][: options.texts]
        for number in range(options.rounds):
            for door in DOORS[number % len(DOORS) :] + DOORS[: number % len(DOORS)]:
                measured.queries[door] += queries(where, door)
                measured.rates[door].append(rate(where, door, texts, options.clients, options.phase_s))
        with Client(sidecar.address) as client:
            (served, *_) = client.list_models()
            tokens = sum(client.count_tokens(texts))
    text = report(measured, options, f"{served.name}, {options.dim or served.native_dim} dimensions, {served.device}", tokens / len(texts), before)
    print(text)
    keep(f"doors-{served.name}-{options.dim or served.native_dim}", text, served.device)


def queries(where: Where, door: str) -> list[float]:
    ask = where.opened(door)
    seconds = []
    for number in range(QUERIES):
        begun = time.perf_counter()
        ask([f"how is item number {number} of a list found"], "query")
        seconds.append(time.perf_counter() - begun)
    return seconds[QUERIES // 10 :]


def rate(where: Where, door: str, texts: list[str], clients: int, seconds: float) -> float:
    """Passages a second."""
    answered, over = SPAWN.Value("l", 0), SPAWN.Event()
    crowd = [SPAWN.Process(target=ask_on, args=(where, door, texts, answered, over), daemon=True) for _ in range(clients)]
    for client in crowd:
        client.start()
    while answered.value < clients * len(texts):
        time.sleep(0.05)
    time.sleep(SETTLE_S)
    before, begun = answered.value, time.perf_counter()
    time.sleep(seconds)
    found = (answered.value - before) / (time.perf_counter() - begun)
    over.set()
    for client in crowd:
        client.join()
    return float(found)


def ask_on(where: Where, door: str, texts: list[str], answered: "Synchronized[int]", over: Event) -> None:
    ask = where.opened(door)
    while not over.is_set():
        ask(texts, "passage")
        with answered.get_lock():
            answered.value += len(texts)


def report(measured: Measured, options: argparse.Namespace, model: str, tokens: float, before: float) -> str:
    base_rate, base_query = statistics.median(measured.rates[GRPC]), statistics.median(measured.queries[GRPC])
    rows = []
    for door in DOORS:
        found, seconds = statistics.median(measured.rates[door]), measured.queries[door]
        rows.append(
            (
                door,
                f"{1000 * statistics.median(seconds):.2f}",
                f"{1000 * percentile(seconds, 95):.2f}",
                f"{1000 * (statistics.median(seconds) - base_query):+.2f}",
                f"{found:,.0f}",
                f"× {found / base_rate:.2f}",
            )
        )
    return "\n".join(
        [
            f"# doors: {model}",
            "",
            *table(("", "a query p50, ms", "p95", "over gRPC", "passages a second", "of gRPC"), rows).splitlines(),
            "",
            f"- passages of {tokens:.0f} tokens, {options.texts} a request, {options.clients} clients; {options.rounds} rounds in turn",
            f"- {machine()}; load average before: {before:.1f}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
