"""
How long a query waits: on an idle sidecar, and while bulk clients keep it busy.

A real sidecar, clients in processes of their own, real texts. Queries go one after the other, with pauses: alone; under saturating bulk load with
interactive priority; and the same sent as passages, which have none. Then many clients flood it with queries, and bulk is to keep half of its rate.
The phases take turns.

    bench/latency.py BEIR_DIR… [--model minilm] [--bulk-clients 4] [--query-clients 8] [--phase-s 15] [--rounds 3]
"""

import argparse
import itertools
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

from machine import keep, load_average, machine, paired_ratio, percentile, table
from race import Runner
from servers import running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.evaluation.collection import read

PAGE_TEXTS = 32
SETTLE_S = 2.0
LONGEST_PAUSE_S = 0.2
PERCENTS = (50, 95, 99)
# Clients with threads of gRPC must not be forked.
SPAWN = multiprocessing.get_context("spawn")

IDLE = "idle"
INTERACTIVE = "under bulk load, interactive"
AS_BULK = "under bulk load, sent as bulk"


@dataclass(frozen=True)
class Crowd:
    """Clients in processes, which ask as long as `asking` is set.

    Attributes:
        answered: texts, so far.
    """

    asking: Event
    answered: "Synchronized[int]"

    def rate(self, seconds: float) -> float:
        """Texts answered a second, over that time."""
        before, begun = self.answered.value, time.perf_counter()
        time.sleep(seconds)
        return (self.answered.value - before) / (time.perf_counter() - begun)


@dataclass
class Measured:
    """What the rounds gave.

    Attributes:
        queries: seconds of each query, by what went on meanwhile.
        alone, flooded: bulk texts a second.
        flood: queries a second meanwhile.
    """

    queries: dict[str, list[float]] = field(default_factory=lambda: {IDLE: [], INTERACTIVE: [], AS_BULK: []})
    alone: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)
    flood: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path, metavar="BEIR_DIR")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bulk-clients", type=int, default=4)
    parser.add_argument("--query-clients", type=int, default=8)
    parser.add_argument("--phase-s", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not options.folders:
        print("skipped: give folders in BEIR's layout with the texts to embed")
        return
    load = load_average()
    collections = [read(folder) for folder in options.folders]
    passages = [text for collection in collections for text in collection.passages()]
    queries = [text for collection in collections for text in collection.queries.values()]
    with shared_folder() as folder:
        about = batch(folder, options.model, options.device, passages)
        with (
            running_sidecar(
                folder, "--model", options.model, "--device", options.device, "--batch-tokens", str(int(about["batch_tokens"]))
            ) as sidecar,
            crowd(options.bulk_clients, sidecar.address, passages, False) as bulk,
            crowd(options.query_clients, sidecar.address, queries, True) as flood,
            Client(sidecar.address) as client,
        ):
            measured = Measured()
            ask_for(client, queries, options.phase_s / 4, True)
            for turn in range(options.rounds):
                print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
                run_round(measured, client, queries, bulk, flood, options.phase_s)
    result = report(options, measured, about, load)
    keep(f"latency-{about['model']}", result, about["device"])
    print(result)


def batch(folder: Path, model: str, device: str, passages: Sequence[str]) -> dict[str, Any]:
    """What the engine says of itself as the sidecar sets it up, and the mean cost of a passage."""
    sample = random.Random(7).sample(passages, min(256, len(passages)))
    with Runner("engine", "engine.py", model, "auto", device, folder=folder, environment={"OMP_WAIT_POLICY": "PASSIVE"}) as engine:
        engine.take("passages", sample)
        return {**engine.about, "cost": engine.about["cost"] / len(sample)}


@contextmanager
def crowd(clients: int, address: str, texts: Sequence[str], interactive: bool) -> Iterator[Crowd]:
    asking, answered = SPAWN.Event(), SPAWN.Value("q", 0)
    processes = [SPAWN.Process(target=ask, args=(address, texts, interactive, seed, asking, answered), daemon=True) for seed in range(clients)]
    for process in processes:
        process.start()
    try:
        yield Crowd(asking, answered)
    finally:
        for process in processes:
            process.kill()
            process.join()


def ask(address: str, texts: Sequence[str], interactive: bool, seed: int, asking: Event, answered: "Synchronized[int]") -> None:
    """One client: pages of passages, or single queries, one call after the other."""
    shuffled = random.Random(seed).sample(texts, len(texts))
    size = 1 if interactive else PAGE_TEXTS
    with Client(address) as client:
        for start in itertools.cycle(range(0, len(shuffled), size)):
            asking.wait()
            page = shuffled[start : start + size]
            list(client.embed_pages(page, truncate="END", input_type="query" if interactive else "passage"))
            with answered.get_lock():
                answered.value += len(page)


def run_round(measured: Measured, client: Client, queries: Sequence[str], bulk: Crowd, flood: Crowd, phase_s: float) -> None:
    measured.queries[IDLE] += ask_for(client, queries, phase_s, True)
    bulk.asking.set()
    time.sleep(SETTLE_S)
    measured.alone.append(bulk.rate(phase_s))
    measured.queries[INTERACTIVE] += ask_for(client, queries, phase_s, True)
    measured.queries[AS_BULK] += ask_for(client, queries, phase_s, False)
    flood.asking.set()
    time.sleep(SETTLE_S)
    before, begun = flood.answered.value, time.perf_counter()
    measured.flooded.append(bulk.rate(phase_s))
    measured.flood.append((flood.answered.value - before) / (time.perf_counter() - begun))
    flood.asking.clear()
    bulk.asking.clear()
    time.sleep(SETTLE_S)


def ask_for(client: Client, queries: Sequence[str], seconds: float, interactive: bool) -> list[float]:
    """Seconds of each of some queries, one after the other."""
    draw = random.Random(7)
    taken = []
    end = time.perf_counter() + seconds
    for query in itertools.cycle(queries):
        # Without a pause each query would come just when a batch begins, for the one before was answered at the end of a batch.
        time.sleep(draw.uniform(0, LONGEST_PAUSE_S))
        begun = time.perf_counter()
        if begun > end:
            break
        list(client.embed_pages([query], truncate="END", input_type="query" if interactive else "passage"))
        taken.append(time.perf_counter() - begun)
    return taken


def report(options: argparse.Namespace, measured: Measured, about: dict[str, Any], load: float) -> str:
    alone, flooded, flood = (statistics.median(rates) for rates in (measured.alone, measured.flooded, measured.flood))
    idle, loaded = (percentile(measured.queries[phase], 95) for phase in (IDLE, INTERACTIVE))
    batch_tokens = float(about["batch_tokens"])
    batch_s = batch_tokens / (alone * float(about["cost"]))
    lines = [
        f"# latency, {about['model']} {about['precision']}",
        "",
        f"One query at a time, with pauses; bulk is {options.bulk_clients} clients with pages of {PAGE_TEXTS} passages; {options.rounds} rounds.",
        "",
        table(
            ("a query, ms", *(f"p{percent}" for percent in PERCENTS), "queries"),
            (
                (phase, *(f"{1000 * percentile(seconds, percent):.1f}" for percent in PERCENTS), f"{len(seconds):,}")
                for phase, seconds in measured.queries.items()
            ),
        ),
        "",
        f"- one batch: {batch_tokens:,.0f} tokens, {1000 * batch_s:.0f} ms at the rate of bulk alone",
        f"- p95 under bulk load, interactive: **{1000 * (loaded - idle):.1f} ms over idle, {(loaded - idle) / batch_s:.2f} batches**",
        f"- bulk: {alone:.1f} texts/s alone, {flooded:.1f} while {options.query_clients} clients send {flood:.0f} queries/s:"
        f" **{paired_ratio(measured.flooded, measured.alone):.0%}**",
        f"- {machine()}; load average before: {load:.1f}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
