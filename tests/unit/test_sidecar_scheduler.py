"""
The scheduler with engines whose batches the test starts and ends.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue

import numpy
import pytest
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.scheduler import Limits, Scheduler
from program import eventually

from nv_embed.errors import DeadlineExceeded, EngineFailure, Overloaded, Unavailable

WAIT_S = 10.0
LIMITS = Limits(batch_tokens=8, queue_texts=100, queue_tokens=1000, queue_requests=20)


class SteppedEngine:
    """Every batch is shown to the test and waits until the test lets it go. A vector holds its text's first id and its length."""

    width = 2
    device = "cpu"
    precision = "fp32"

    def __init__(self) -> None:
        self._begun: SimpleQueue[list[list[int]]] = SimpleQueue()
        self._verdicts: SimpleQueue[BaseException | None] = SimpleQueue()

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        self._begun.put([list(ids) for ids in batch])
        verdict = self._verdicts.get()
        if verdict is not None:
            raise verdict
        return numpy.array([[ids[0], len(ids)] for ids in batch], dtype=numpy.float32)

    def begun(self) -> list[list[int]]:
        """The batch that the engine has just been given."""
        return self._begun.get(timeout=WAIT_S)

    def go_on(self, verdict: BaseException | None = None) -> None:
        self._verdicts.put(verdict)

    def step(self) -> list[list[int]]:
        batch = self.begun()
        self.go_on()
        return batch


class Health:
    def __init__(self) -> None:
        self.heard: SimpleQueue[bool] = SimpleQueue()

    def __call__(self, healthy: bool) -> None:
        self.heard.put(healthy)

    def next(self) -> bool:
        return self.heard.get(timeout=WAIT_S)


@pytest.fixture
def engine() -> SteppedEngine:
    return SteppedEngine()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def scheduler(engine: SteppedEngine, health: Health) -> Iterator[Scheduler]:
    scheduler = Scheduler(LIMITS, health)
    scheduler.start()
    yield scheduler
    for _ in range(20):
        engine.go_on()
    scheduler.close()


def text(name: int, length: int = 4) -> list[int]:
    return [name] * length


def names(future: "Future[Vectors]") -> list[int]:
    return [int(row[0]) for row in future.result(WAIT_S)]


def refuses(scheduler: Scheduler) -> bool:
    try:
        scheduler.check(1, interactive=False)
    except Unavailable:
        return True
    return False


def occupy(scheduler: Scheduler, engine: SteppedEngine) -> "Future[Vectors]":
    """Keep the engine busy with one batch, so that what comes now has to queue."""
    busy = scheduler.submit(engine, [text(99)], interactive=False)
    assert engine.begun() == [text(99)]
    return busy


def test_answers_come_in_the_order_of_the_texts_whatever_the_order_of_the_work(scheduler: Scheduler, engine: SteppedEngine) -> None:
    lengths = [3, 8, 1, 5, 2, 8]
    future = scheduler.submit(engine, [text(n, length) for n, length in enumerate(lengths)], interactive=False)
    batches = 0
    while not future.done():
        assert sum(map(len, engine.step())) <= LIMITS.batch_tokens
        batches += 1
        if batches == 4:
            break
    assert future.result(WAIT_S).tolist() == [[n, length] for n, length in enumerate(lengths)]


def test_short_requests_share_a_batch(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    one, other = (scheduler.submit(engine, [text(name)], interactive=False) for name in (1, 2))
    engine.go_on()
    assert engine.step() == [text(1), text(2)]
    assert (names(one), names(other)) == ([1], [2])


def test_a_text_longer_than_a_batch_has_one_of_its_own(scheduler: Scheduler, engine: SteppedEngine) -> None:
    future = scheduler.submit(engine, [text(1, 30), text(2)], interactive=False)
    assert engine.step() == [text(1, 30)]
    assert engine.step() == [text(2)]
    assert names(future) == [1, 2]


def test_a_query_waits_for_the_batch_under_way_and_no_more(scheduler: Scheduler, engine: SteppedEngine) -> None:
    bulk = scheduler.submit(engine, [text(n) for n in range(10)], interactive=False)
    assert engine.begun() == [text(9), text(8)]
    query = scheduler.submit(engine, [text(50)], interactive=True)
    engine.go_on()
    assert engine.step() == [text(50)]
    assert names(query) == [50]
    assert not bulk.done()
    for _ in range(4):
        engine.step()
    assert names(bulk) == list(range(10))


def test_a_request_past_its_deadline_costs_nothing(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    late = scheduler.submit(engine, [text(1)], interactive=False, deadline=time.monotonic())
    in_time = scheduler.submit(engine, [text(2)], interactive=False, deadline=time.monotonic() + 60)
    engine.go_on()
    assert engine.step() == [text(2)]
    assert names(in_time) == [2]
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)


def test_a_request_that_was_given_up_costs_nothing_and_leaves_its_place_in_the_queue(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    given_up = scheduler.submit(engine, [text(1)] * LIMITS.queue_texts, interactive=False)
    with pytest.raises(Overloaded):
        scheduler.check(1, interactive=False)
    assert given_up.cancel()
    other = scheduler.submit(engine, [text(2)], interactive=False)
    engine.go_on()
    assert engine.step() == [text(2)]
    assert names(other) == [2]
    with pytest.raises(CancelledError):
        given_up.result(WAIT_S)


def test_a_request_given_up_in_the_middle_is_not_computed_to_its_end(scheduler: Scheduler, engine: SteppedEngine) -> None:
    long = scheduler.submit(engine, [text(1)] * 20, interactive=False)
    engine.begun()
    assert long.cancel()
    other = scheduler.submit(engine, [text(2)], interactive=False)
    engine.go_on()
    assert engine.step() == [text(2)]
    assert names(other) == [2]


@pytest.mark.parametrize(
    ("waiting", "more"),
    [
        ([text(1)] * LIMITS.queue_texts, [text(2)]),
        ([text(1, LIMITS.queue_tokens)], [text(2)]),
    ],
)
def test_a_full_queue_answers_at_once_and_says_when_to_come_back(
    scheduler: Scheduler, engine: SteppedEngine, waiting: list[list[int]], more: list[list[int]]
) -> None:
    occupy(scheduler, engine)
    scheduler.submit(engine, waiting, interactive=False)
    with pytest.raises(Overloaded) as raised:
        scheduler.submit(engine, more, interactive=False)
    assert raised.value.retry_after_s is not None
    assert 0 < raised.value.retry_after_s <= 30


def test_too_many_requests_are_refused_as_too_many_texts_are(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    for _ in range(LIMITS.queue_requests):
        scheduler.submit(engine, [text(1)], interactive=False)
    with pytest.raises(Overloaded):
        scheduler.check(1, interactive=False)


def test_bulk_work_does_not_fill_the_queue_of_queries(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    scheduler.submit(engine, [text(1)] * LIMITS.queue_texts, interactive=False)
    query = scheduler.submit(engine, [text(2)], interactive=True)
    engine.go_on()
    assert engine.step() == [text(2)]
    assert names(query) == [2]


def test_a_single_request_over_the_limit_is_possible_when_nothing_waits(scheduler: Scheduler, engine: SteppedEngine) -> None:
    future = scheduler.submit(engine, [text(1, 2 * LIMITS.queue_tokens)], interactive=False)
    engine.step()
    assert names(future) == [1]


def test_a_failing_batch_fails_its_own_callers_only(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    failing = [scheduler.submit(engine, [text(n)], interactive=False) for n in (1, 2)]
    later = scheduler.submit(engine, [text(3)], interactive=False)
    engine.go_on()
    assert engine.begun() == [text(1), text(2)]
    engine.go_on(RuntimeError("out of memory"))
    assert engine.step() == [[0]], "the engine is asked whether it can compute at all"
    assert engine.step() == [text(3)]
    assert names(later) == [3]
    for future in failing:
        with pytest.raises(EngineFailure):
            future.result(WAIT_S)


def test_vectors_that_are_not_finite_are_a_failure(scheduler: Scheduler, engine: SteppedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "encode", lambda batch: numpy.full((len(batch), 2), math.nan, dtype=numpy.float32))
    with pytest.raises(EngineFailure):
        scheduler.submit(engine, [text(1)], interactive=False).result(WAIT_S)


def test_one_bad_batch_does_not_turn_the_health(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    failing = scheduler.submit(engine, [text(1)], interactive=False)
    engine.begun()
    engine.go_on(RuntimeError())
    assert engine.step() == [[0]]
    with pytest.raises(EngineFailure):
        failing.result(WAIT_S)
    fine = scheduler.submit(engine, [text(2)], interactive=False)
    engine.step()
    assert names(fine) == [2]
    assert health.heard.empty()


def test_a_broken_engine_is_not_healthy_until_it_computes_again(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    scheduler.submit(engine, [text(1)], interactive=False)
    for _ in range(2):
        engine.begun()
        engine.go_on(RuntimeError("the device is gone"))
    assert health.next() is False
    fine = scheduler.submit(engine, [text(2)], interactive=False)
    while engine.step() != [text(2)]:
        pass
    assert names(fine) == [2]
    assert health.next() is True


def test_when_the_thread_dies_everybody_hears_of_it(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    computing = scheduler.submit(engine, [text(1)], interactive=False)
    engine.begun()
    waiting = scheduler.submit(engine, [text(2)], interactive=False)
    engine.go_on(SystemExit())
    assert health.next() is False
    for future in (computing, waiting):
        with pytest.raises(EngineFailure):
            future.result(WAIT_S)
    with pytest.raises(EngineFailure):
        scheduler.submit(engine, [text(3)], interactive=True)


def test_closing_ends_the_thread_and_answers_who_still_waits(engine: SteppedEngine, health: Health) -> None:
    scheduler = Scheduler(LIMITS, health)
    scheduler.start()
    busy = occupy(scheduler, engine)
    waiting = scheduler.submit(engine, [text(1)], interactive=False)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    assert eventually(lambda: refuses(scheduler))
    engine.go_on()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert names(busy) == [99]
    with pytest.raises(Unavailable):
        waiting.result(WAIT_S)


def test_batches_are_of_one_engine(scheduler: Scheduler, engine: SteppedEngine) -> None:
    other_engine = SteppedEngine()
    occupy(scheduler, engine)
    one, other, third = (scheduler.submit(chosen, [text(n)], interactive=False) for n, chosen in enumerate((engine, other_engine, engine)))
    engine.go_on()
    assert engine.step() == [text(0), text(2)]
    assert other_engine.step() == [text(1)]
    assert [names(future) for future in (one, other, third)] == [[0], [1], [2]]
