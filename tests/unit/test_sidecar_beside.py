"""
Small batches of queries that are computed beside a bulk batch, by engines that can do so.
"""

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy
import pytest
from nv_embed_sidecar.engines import Capacity, OutOfMemory, Vectors
from nv_embed_sidecar.queues import Request
from nv_embed_sidecar.scheduler import Patience, Scheduler
from program import eventually
from stepping import AT_ONCE, BATCH_TOKENS, LIMITS, PROBE, WAIT_S, Health, Verdict, names, refuses, running, text

from nv_embed.errors import DeadlineExceeded, EngineFailure, Unavailable

BESIDE_TOKENS = 4
A_WHILE_S = 0.2


@dataclass
class Computing:
    """A batch that an engine has been given, until the test says how it ends."""

    texts: list[list[int]]
    thread: str
    verdict: SimpleQueue[Verdict] = field(default_factory=SimpleQueue)

    def ends(self, verdict: Verdict = None) -> None:
        self.verdict.put(verdict)


class TwoHandedEngine:
    """Computes two batches at a time, the second of them a small one. A vector holds its text's first id and its length."""

    width = 2
    device = "cpu"
    precision = "fp32"
    capacity = Capacity(tokens_per_s=1000, batch_tokens=BATCH_TOKENS, most_tokens=BATCH_TOKENS, beside_tokens=BESIDE_TOKENS)

    def __init__(self) -> None:
        self._begun: SimpleQueue[Computing] = SimpleQueue()
        self._given: list[Computing] = []
        self._closing = False
        self.rebuilds: SimpleQueue[None] = SimpleQueue()

    def cost(self, tokens: int) -> float:
        return tokens

    def rows(self, lengths: Sequence[int]) -> int:
        return sum(lengths)

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        computing = Computing([list(ids) for ids in batch], threading.current_thread().name)
        self._given.append(computing)
        self._begun.put(computing)
        verdict = None if self._closing else computing.verdict.get()
        if isinstance(verdict, BaseException):
            try:
                raise verdict
            finally:
                del verdict  # whose traceback holds this frame
        return numpy.array([[ids[0], len(ids)] for ids in batch], dtype=numpy.float32) if verdict is None else verdict

    def rebuild(self) -> None:
        self.rebuilds.put(None)

    def begun(self) -> Computing:
        return self._begun.get(timeout=WAIT_S)

    def is_idle(self) -> bool:
        """Whether it is given nothing more for a while."""
        try:
            self._begun.put(self._begun.get(timeout=A_WHILE_S))
        except Empty:
            return True
        return False

    def go_on(self) -> None:
        """Let everything end."""
        self._closing = True
        for computing in self._given:
            computing.ends()


@pytest.fixture
def engine() -> TwoHandedEngine:
    return TwoHandedEngine()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def failures() -> SimpleQueue[str]:
    return SimpleQueue()


@pytest.fixture
def scheduler(engine: TwoHandedEngine, health: Health, failures: SimpleQueue[str]) -> Iterator[Scheduler]:
    with running(Scheduler(LIMITS, health, failures.put, patience=AT_ONCE), engine) as scheduler:
        yield scheduler


def busy_with_bulk(scheduler: Scheduler, engine: TwoHandedEngine, more: int = 0) -> tuple[Computing, "Future[Vectors]"]:
    """Bulk work: the batch of it that is under way, and the answer; with `more`, texts that wait behind."""
    answer = scheduler.submit(engine, [text(99, BATCH_TOKENS), *[text(98, BATCH_TOKENS)] * more], interactive=False)
    batch = engine.begun()
    assert (batch.texts[0][0] in (98, 99), batch.thread) == (True, "engine")
    return batch, answer


def ask(scheduler: Scheduler, engine: TwoHandedEngine, name: int, *, deadline_s: float = 1e9) -> "Future[Vectors]":
    return scheduler.submit(engine, [text(name)], interactive=True, deadline=time.monotonic() + deadline_s)


def test_a_query_is_answered_while_a_bulk_batch_is_under_way(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    bulk, answer = busy_with_bulk(scheduler, engine)
    for name in (1, 2, 3):
        query = ask(scheduler, engine, name)
        beside = engine.begun()
        assert (beside.texts, beside.thread) == ([text(name)], "beside")
        beside.ends()
        assert names(query) == [name]
    assert not answer.done()
    bulk.ends()
    assert names(answer) == [99]


def test_an_engine_that_is_idle_computes_queries_as_ever(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    query = ask(scheduler, engine, 1)
    computing = engine.begun()
    assert computing.thread == "engine"
    other = ask(scheduler, engine, 2)
    assert engine.is_idle(), "queries wait for queries"
    computing.ends()
    engine.begun().ends()
    assert names(query) + names(other) == [1, 2]


def test_bulk_work_is_never_computed_beside(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    bulk, _ = busy_with_bulk(scheduler, engine)
    scheduler.submit(engine, [text(1)], interactive=False)
    assert engine.is_idle()
    bulk.ends()
    assert engine.begun().thread == "engine"


def test_a_query_too_large_waits_for_the_engine_and_smaller_ones_of_others_do_not(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    bulk, _ = busy_with_bulk(scheduler, engine)
    large = scheduler.submit(engine, [text(1, BESIDE_TOKENS + 1)], interactive=True, client="large")
    small = scheduler.submit(engine, [text(2, 1)], interactive=True, client="small")
    beside = engine.begun()
    assert beside.texts == [text(2, 1)]
    beside.ends()
    assert names(small) == [2]
    assert engine.is_idle()
    bulk.ends()
    engine.begun().ends()
    assert names(large) == [1]


def test_an_engine_of_one_hand_is_given_one_batch_at_a_time(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    engine.capacity = Capacity(tokens_per_s=1000, batch_tokens=BATCH_TOKENS, most_tokens=BATCH_TOKENS)
    busy_with_bulk(scheduler, engine)
    ask(scheduler, engine, 1)
    assert engine.is_idle()


def test_one_requests_texts_come_together_from_both_threads(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    bulk, _ = busy_with_bulk(scheduler, engine)
    request = scheduler.submit(engine, [text(n, 3) for n in range(3)], interactive=True)
    beside = engine.begun()
    assert (len(beside.texts), beside.thread) == (1, "beside")
    bulk.ends()
    rest = engine.begun()
    assert (len(rest.texts), rest.thread) == (2, "engine")
    rest.ends()
    assert not request.done()
    beside.ends()
    assert names(request) == [0, 1, 2]


@pytest.mark.parametrize(
    "failure", [RuntimeError("no"), OutOfMemory("no"), numpy.full((1, 2), numpy.nan, dtype=numpy.float32)], ids=["error", "memory", "nan"]
)
def test_what_fails_beside_is_computed_again_by_the_engines_thread(
    scheduler: Scheduler, engine: TwoHandedEngine, failure: Verdict, health: Health
) -> None:
    bulk, answer = busy_with_bulk(scheduler, engine)
    query = ask(scheduler, engine, 1)
    engine.begun().ends(failure)
    assert engine.is_idle(), "not beside again"
    assert not query.done()
    bulk.ends()
    again = engine.begun()
    assert (again.texts, again.thread) == ([text(1)], "engine")
    again.ends()
    assert names(query) + names(answer) == [1, 99]
    assert health.heard.empty()


def test_what_fails_again_fails_alone(scheduler: Scheduler, engine: TwoHandedEngine, health: Health) -> None:
    bulk, answer = busy_with_bulk(scheduler, engine)
    query = ask(scheduler, engine, 1)
    engine.begun().ends(RuntimeError("no"))
    bulk.ends()
    engine.begun().ends(RuntimeError("no"))
    probe = engine.begun()
    assert probe.texts == PROBE
    probe.ends()
    with pytest.raises(EngineFailure):
        query.result(WAIT_S)
    assert names(answer) == [99]
    assert health.heard.empty()


def test_a_query_that_was_given_up_or_is_late_is_not_computed_beside(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    busy_with_bulk(scheduler, engine)
    first = ask(scheduler, engine, 1)
    beside = engine.begun()
    late = ask(scheduler, engine, 2, deadline_s=0.01)
    given_up = ask(scheduler, engine, 3)
    given_up.cancel()
    time.sleep(0.02)
    beside.ends()
    assert names(first) == [1]
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)
    assert engine.is_idle()


def test_when_the_engine_breaks_a_query_beside_hears_of_it_and_the_rebuilding_waits_for_it(
    scheduler: Scheduler, engine: TwoHandedEngine, health: Health
) -> None:
    bulk, answer = busy_with_bulk(scheduler, engine)
    query = ask(scheduler, engine, 1)
    beside = engine.begun()
    bulk.ends(RuntimeError("the device is gone"))
    engine.begun().ends(RuntimeError("the device is gone"))
    assert health.next() is False
    for future in (query, answer):
        with pytest.raises(EngineFailure):
            future.result(WAIT_S)
    time.sleep(A_WHILE_S)
    assert engine.rebuilds.empty()
    beside.ends()
    engine.rebuilds.get(timeout=WAIT_S)
    engine.begun().ends()
    assert health.next() is True


def test_a_batch_that_hangs_beside_is_noticed_and_everyone_hears_of_it(engine: TwoHandedEngine, health: Health, failures: SimpleQueue[str]) -> None:
    with running(Scheduler(LIMITS, health, failures.put, patience=Patience(hang_s=0.5, hang_factor=1)), engine) as scheduler:
        bulk, answer = busy_with_bulk(scheduler, engine)
        query = ask(scheduler, engine, 1)
        engine.begun()
        bulk.ends()
        assert names(answer) == [99]
        assert failures.get(timeout=WAIT_S) == "the engine hangs"
        assert health.next() is False
        with pytest.raises(EngineFailure):
            query.result(WAIT_S)


def test_when_the_second_thread_dies_everybody_hears_of_it(
    scheduler: Scheduler, engine: TwoHandedEngine, health: Health, failures: SimpleQueue[str]
) -> None:
    _, answer = busy_with_bulk(scheduler, engine)
    query = ask(scheduler, engine, 1)
    engine.begun().ends(SystemExit())
    assert "SystemExit" in failures.get(timeout=WAIT_S)
    assert health.next() is False
    for future in (query, answer):
        with pytest.raises(EngineFailure):
            future.result(WAIT_S)
    with pytest.raises(EngineFailure):
        ask(scheduler, engine, 2)


@pytest.mark.parametrize("first", ["bulk", "beside"])
def test_closing_lets_both_batches_finish_and_answers_who_still_waits(
    engine: TwoHandedEngine, health: Health, failures: SimpleQueue[str], first: str
) -> None:
    scheduler = Scheduler(LIMITS, health, failures.put)
    scheduler.start()
    bulk, answer = busy_with_bulk(scheduler, engine)
    query = ask(scheduler, engine, 1)
    beside = engine.begun()
    waiting = ask(scheduler, engine, 2)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    assert eventually(lambda: refuses(scheduler, engine))
    for batch in (bulk, beside) if first == "bulk" else (beside, bulk):
        assert closing.is_alive()
        batch.ends()
        time.sleep(A_WHILE_S / 4)
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert names(answer) + names(query) == [99, 1]
    with pytest.raises(Unavailable):
        waiting.result(WAIT_S)
    assert failures.empty()
    assert health.heard.empty()


def test_queries_that_are_a_batch_ahead_wait_for_the_bulk_batch(scheduler: Scheduler, engine: TwoHandedEngine) -> None:
    bulk, _ = busy_with_bulk(scheduler, engine, more=2)
    query = ask(scheduler, engine, 1)
    beside = engine.begun()
    time.sleep(A_WHILE_S)  # much more than a bulk batch takes at the engine's rate
    beside.ends()
    assert names(query) == [1]
    other = ask(scheduler, engine, 2)
    assert engine.is_idle()
    bulk.ends()
    while not other.done():
        engine.begun().ends()
    assert names(other) == [2]


@pytest.mark.parametrize("fails", [False, True])
def test_a_batch_beside_leaves_nothing_in_memory(
    scheduler: Scheduler, engine: TwoHandedEngine, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "nv_embed_sidecar")  # what pytest records of a failure holds its traceback
    gc.collect()
    before = requests_held()
    gc.disable()
    try:
        bulk, answer = busy_with_bulk(scheduler, engine)
        query = ask(scheduler, engine, 1)
        engine.begun().ends(RuntimeError("no") if fails else None)
        bulk.ends()
        if fails:
            engine.begun().ends()
        assert names(query) + names(answer) == [1, 99]
        assert eventually(lambda: requests_held() == before)
    finally:
        gc.enable()


def requests_held() -> int:
    return sum(type(thing) is Request for thing in gc.get_objects())
