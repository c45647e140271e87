"""
The scheduler with engines whose batches the test starts and ends.
"""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from queue import SimpleQueue

import numpy
import pytest
from nv_embed_sidecar.engines import OutOfMemory
from nv_embed_sidecar.queues import GREED
from nv_embed_sidecar.scheduler import Patience, Scheduler
from nv_embed_sidecar.turns import BULK_SHARE
from program import eventually
from stepping import AT_ONCE, BATCH_TOKENS, LIMITS, PROBE, WAIT_S, Health, SteppedEngine, names, occupy, refuses, running, text

from nv_embed.errors import DeadlineExceeded, EngineFailure, Overloaded, Unavailable


@pytest.fixture
def engine() -> SteppedEngine:
    return SteppedEngine()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def failures() -> SimpleQueue[str]:
    """What the scheduler gives as the reason for its end."""
    return SimpleQueue()


@pytest.fixture
def scheduler(engine: SteppedEngine, health: Health, failures: SimpleQueue[str]) -> Iterator[Scheduler]:
    with running(Scheduler(LIMITS, health, failures.put, patience=AT_ONCE), engine) as scheduler:
        yield scheduler


def test_answers_come_in_the_order_of_the_texts_whatever_the_order_of_the_work(scheduler: Scheduler, engine: SteppedEngine) -> None:
    lengths = [3, 8, 1, 5, 2, 8]
    future = scheduler.submit(engine, [text(n, length) for n, length in enumerate(lengths)], interactive=False)
    batches = 0
    while not future.done():
        assert sum(map(len, engine.step())) <= BATCH_TOKENS
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
    given_up = scheduler.submit(engine, [text(1)] * LIMITS.texts, interactive=False)
    with pytest.raises(Overloaded):
        scheduler.check(engine, 1, interactive=False)
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
        ([text(1)] * LIMITS.texts, [text(2)]),
        ([text(1, int(LIMITS.cost))], [text(2)]),
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


def fill(scheduler: Scheduler, engine: SteppedEngine, client: str) -> int:
    """How many requests of one text a client gets in before it is refused."""
    for accepted in range(1000):
        try:
            scheduler.submit(engine, [text(1)], interactive=False, client=client)
        except Overloaded:
            return accepted
    raise AssertionError("never refused")


def test_one_client_leaves_room_for_others_and_together_they_do_not_exceed_the_limit(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    accepted = [fill(scheduler, engine, client=f"client {n}") for n in range(6)]
    assert accepted[0] <= LIMITS.requests * GREED // (1 + GREED) + 1
    assert accepted[0] >= accepted[1] >= accepted[2] >= 1
    assert sum(accepted) == LIMITS.requests


def test_how_long_to_stay_away_is_how_long_the_work_that_waits_takes(scheduler: Scheduler, engine: SteppedEngine) -> None:
    def retry_after_s() -> float | None:
        with pytest.raises(Overloaded) as raised:
            scheduler.check(engine, 1, interactive=False)
        return raised.value.retry_after_s

    occupy(scheduler, engine)
    scheduler.submit(engine, [text(1, 8)] * LIMITS.texts, interactive=False)
    alone_s = 8 * LIMITS.texts / engine.capacity.tokens_per_s
    assert retry_after_s() == pytest.approx(alone_s)
    scheduler.submit(engine, [text(2)], interactive=True)
    assert retry_after_s() == pytest.approx(alone_s / BULK_SHARE), "queries get a part of the time"


def test_bulk_work_does_not_fill_the_queue_of_queries(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    scheduler.submit(engine, [text(1)] * LIMITS.texts, interactive=False)
    query = scheduler.submit(engine, [text(2)], interactive=True)
    engine.go_on()
    assert engine.step() == [text(2)]
    assert names(query) == [2]


def test_a_single_request_over_the_limit_is_possible_when_nothing_waits(scheduler: Scheduler, engine: SteppedEngine) -> None:
    future = scheduler.submit(engine, [text(1, 2 * int(LIMITS.cost))], interactive=False)
    engine.step()
    assert names(future) == [1]


@pytest.mark.parametrize("poisons", [{13}, {10, 11, 17}, set(range(10, 18))])
def test_a_failing_batch_fails_only_the_requests_that_make_it_fail(
    scheduler: Scheduler, engine: SteppedEngine, health: Health, poisons: set[int]
) -> None:
    occupy(scheduler, engine)
    futures = {name: scheduler.submit(engine, [text(name, 1)], interactive=False) for name in range(10, 18)}
    engine.go_on()
    failed: set[int] = set()
    answered: set[int] = set()
    while failed | answered != set(futures):
        batch = engine.begun()
        bad = [ids for ids in batch if ids[0] in poisons]
        engine.go_on(RuntimeError("a kernel failed") if bad else None)
        failed |= {ids[0] for ids in bad if len(batch) == 1}
        answered |= set() if bad or batch == PROBE else {ids[0] for ids in batch}
    if failed:
        engine.go_on()
    for name, future in futures.items():
        if name in poisons:
            with pytest.raises(EngineFailure) as raised:
                future.result(WAIT_S)
            assert raised.value.position == 0
        else:
            assert names(future) == [name]
    assert health.heard.empty(), "one bad text is not a dead device"


def test_a_failing_request_is_told_apart_without_delaying_queries(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    bulk = [scheduler.submit(engine, [text(n)], interactive=False) for n in (1, 2)]
    engine.go_on()
    assert engine.begun() == [text(1), text(2)]
    query = scheduler.submit(engine, [text(50)], interactive=True)
    engine.go_on(RuntimeError())
    assert engine.step() == PROBE
    assert engine.step() == [text(50)]
    assert names(query) == [50]
    assert [engine.step(), engine.step()] == [[text(2)], [text(1)]]
    assert [names(future) for future in bulk] == [[1], [2]], "it failed together and not apart: nobody is to blame"


def test_parts_of_a_failed_batch_that_are_given_up_are_not_computed(scheduler: Scheduler, engine: SteppedEngine) -> None:
    occupy(scheduler, engine)
    bulk = [scheduler.submit(engine, [text(n)], interactive=False) for n in (1, 2)]
    engine.go_on()
    assert engine.begun() == [text(1), text(2)]
    engine.go_on(RuntimeError())
    assert engine.begun() == PROBE
    assert bulk[1].cancel()
    engine.go_on()
    assert engine.step() == [text(1)]
    assert names(bulk[0]) == [1]
    last = scheduler.submit(engine, [text(3)], interactive=False)
    assert engine.step() == [text(3)]
    assert names(last) == [3]


def test_vectors_that_are_not_finite_fail_only_the_request_whose_they_are(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    occupy(scheduler, engine)
    one, other = (scheduler.submit(engine, [text(name, 2), text(name, 2)], interactive=False) for name in (1, 2))
    engine.go_on()
    vectors = numpy.ones((4, 2), dtype=numpy.float32)
    vectors[3, 1] = math.nan
    engine.begun()
    engine.go_on(vectors)
    assert engine.step() == PROBE
    assert names(one) == [1, 1]
    with pytest.raises(EngineFailure) as raised:
        other.result(WAIT_S)
    assert raised.value.position is not None
    assert health.heard.empty()


def test_an_answer_of_the_wrong_shape_is_a_failure(scheduler: Scheduler, engine: SteppedEngine) -> None:
    failing = scheduler.submit(engine, [text(1)], interactive=False)
    engine.step(numpy.ones((2, 2), dtype=numpy.float32))
    assert engine.step() == PROBE
    with pytest.raises(EngineFailure):
        failing.result(WAIT_S)


def test_an_engine_that_computes_nothing_but_nans_is_broken(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    failing = scheduler.submit(engine, [text(1)], interactive=False)
    for _ in range(2):
        engine.step(numpy.full((1, 2), math.nan, dtype=numpy.float32))
    assert health.next() is False
    with pytest.raises(EngineFailure):
        failing.result(WAIT_S)


def test_out_of_memory_halves_the_batch_and_tries_again(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    future = scheduler.submit(engine, [text(n, 2) for n in range(8)], interactive=False)
    sizes = []
    while not future.done():
        batch = engine.begun()
        sizes.append(len(batch))
        engine.go_on(OutOfMemory() if len(batch) > 2 else None)
        if sum(size for size in sizes if size <= 2) == 8:
            break
    assert sizes == [4, 2, 2, 2, 2]
    assert names(future) == list(range(8))
    assert health.heard.empty()


def test_what_did_not_fit_waits_for_a_query_that_came_meanwhile(scheduler: Scheduler, engine: SteppedEngine) -> None:
    bulk = scheduler.submit(engine, [text(1), text(2)], interactive=False)
    batch = engine.begun()
    query = scheduler.submit(engine, [text(50)], interactive=True)
    engine.go_on(OutOfMemory())
    assert engine.step() == [text(50)]
    assert [engine.step(), engine.step()] == [batch[:1], batch[1:]]
    assert (names(query), names(bulk)) == ([50], [1, 2])


def test_one_text_that_does_not_fit_fails_its_own_request_and_says_what_to_do(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    large = scheduler.submit(engine, [text(1), text(2, 7)], interactive=False, client="one")
    assert engine.begun() == [text(2, 7)]
    other = scheduler.submit(engine, [text(3)], interactive=False, client="other")
    engine.go_on(OutOfMemory())
    assert engine.step() == PROBE
    assert engine.step() == [text(3)]
    assert names(other) == [3]
    with pytest.raises(EngineFailure, match="no room for a text of 7 tokens") as raised:
        large.result(WAIT_S)
    assert "nv_chunk" in raised.value.hint
    assert raised.value.position == 1
    assert health.heard.empty()


def break_(engine: SteppedEngine) -> None:
    """Fail the batch that comes next, and the probe after it."""
    for _ in range(2):
        engine.step(RuntimeError("the device is gone"))


def test_when_the_engine_breaks_everyone_who_waits_hears_of_it_at_once(scheduler: Scheduler, engine: SteppedEngine, health: Health) -> None:
    computing = scheduler.submit(engine, [text(1)] * 3, interactive=False)
    assert engine.begun() == [text(1), text(1)]
    waiting = [scheduler.submit(engine, [text(2)], interactive=interactive) for interactive in (True, False)]
    engine.go_on(RuntimeError("the device is gone"))
    engine.step(RuntimeError("the device is gone"))
    assert health.next() is False
    for future in (computing, *waiting):
        with pytest.raises(EngineFailure):
            future.result(WAIT_S)


def test_a_broken_engine_is_rebuilt_and_serves_again(scheduler: Scheduler, engine: SteppedEngine, health: Health, failures: SimpleQueue[str]) -> None:
    scheduler.submit(engine, [text(1)], interactive=False)
    break_(engine)
    assert health.next() is False
    assert engine.begun() == PROBE
    with pytest.raises(Unavailable) as raised:
        scheduler.check(engine, 1, interactive=True)
    assert raised.value.retry_after_s is not None
    assert raised.value.hint
    engine.go_on(RuntimeError("still gone"))
    assert engine.step() == PROBE
    assert health.next() is True
    assert engine.rebuilds.qsize() == 2
    fine = scheduler.submit(engine, [text(2)], interactive=False)
    assert engine.step() == [text(2)]
    assert names(fine) == [2]
    assert failures.empty()


def test_an_engine_that_cannot_be_rebuilt_ends_the_scheduler_with_a_reason(
    scheduler: Scheduler, engine: SteppedEngine, health: Health, failures: SimpleQueue[str]
) -> None:
    scheduler.submit(engine, [text(1)], interactive=False)
    break_(engine)
    for _ in AT_ONCE.rebuild_pauses_s:
        assert engine.step(RuntimeError("still gone")) == PROBE
    assert "rebuilding it 3 times" in failures.get(timeout=WAIT_S)
    assert engine.rebuilds.qsize() == 3
    assert [health.next(), health.next()] == [False, False]
    with pytest.raises(EngineFailure, match="the engine has stopped"):
        scheduler.submit(engine, [text(2)], interactive=True)


def test_an_engine_that_breaks_again_on_every_first_batch_is_not_rebuilt_for_ever(
    scheduler: Scheduler, engine: SteppedEngine, failures: SimpleQueue[str]
) -> None:
    for _ in AT_ONCE.rebuild_pauses_s:
        assert eventually(lambda: not refuses(scheduler, engine))
        scheduler.submit(engine, [text(1)], interactive=False)
        break_(engine)
        assert engine.step() == PROBE
    assert eventually(lambda: not refuses(scheduler, engine))
    scheduler.submit(engine, [text(1)], interactive=False)
    break_(engine)
    assert "rebuilding it 3 times" in failures.get(timeout=WAIT_S)


def test_an_engine_that_breaks_now_and_then_is_rebuilt_each_time(scheduler: Scheduler, engine: SteppedEngine, failures: SimpleQueue[str]) -> None:
    for _ in range(2 * len(AT_ONCE.rebuild_pauses_s)):
        scheduler.submit(engine, [text(1)], interactive=False)
        break_(engine)
        assert engine.step() == PROBE
        assert eventually(lambda: not refuses(scheduler, engine))
        fine = scheduler.submit(engine, [text(2)], interactive=False)
        assert engine.step() == [text(2)]
        assert names(fine) == [2]
    assert failures.empty()


def test_another_engine_goes_on_while_one_is_broken(engine: SteppedEngine, health: Health, failures: SimpleQueue[str]) -> None:
    patience = Patience(rebuild_pauses_s=(WAIT_S * 10,))
    other_engine = SteppedEngine()
    with running(Scheduler(LIMITS, health, failures.put, patience=patience), engine, other_engine) as scheduler:
        broken = scheduler.submit(engine, [text(1)], interactive=False)
        engine.begun()
        fine = scheduler.submit(other_engine, [text(2)], interactive=False)
        engine.go_on(RuntimeError())
        engine.step(RuntimeError())
        assert health.next() is False
        assert other_engine.step() == [text(2)]
        assert names(fine) == [2]
        with pytest.raises(EngineFailure):
            broken.result(WAIT_S)
        assert refuses(scheduler, engine)
        later = scheduler.submit(other_engine, [text(3)], interactive=True)
        assert other_engine.step() == [text(3)]
        assert names(later) == [3]
    assert engine.rebuilds.empty(), "closing does not wait for the next try"
    assert failures.empty()


@pytest.mark.parametrize("stuck_in", ["encode", "probe", "rebuild"])
def test_an_engine_that_hangs_is_noticed_and_everyone_hears_of_it(
    engine: SteppedEngine, health: Health, failures: SimpleQueue[str], stuck_in: str
) -> None:
    patience = Patience(hang_s=0.2, hang_factor=1, rebuild_s=0.2, rebuild_pauses_s=(0.0,))
    with running(Scheduler(LIMITS, health, failures.put, patience=patience), engine) as scheduler:
        computing = scheduler.submit(engine, [text(1)], interactive=False)
        engine.begun()
        waiting = scheduler.submit(engine, [text(2)], interactive=True)
        for _ in range(["encode", "probe", "rebuild"].index(stuck_in)):
            engine.go_on(RuntimeError())
            engine.begun()
        assert failures.get(timeout=WAIT_S) == "the engine hangs"
        assert health.next() is False
        for future in (computing, waiting):
            with pytest.raises(EngineFailure):
                future.result(WAIT_S)
        with pytest.raises(EngineFailure):
            scheduler.submit(engine, [text(3)], interactive=False)
        closing = threading.Thread(target=scheduler.close)
        closing.start()
        closing.join(WAIT_S)
        assert not closing.is_alive(), "the stuck thread does not hold up the end"


def test_when_the_thread_dies_everybody_hears_of_it(scheduler: Scheduler, engine: SteppedEngine, health: Health, failures: SimpleQueue[str]) -> None:
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
    assert "SystemExit" in failures.get(timeout=WAIT_S)


def test_closing_ends_the_thread_and_answers_who_still_waits(engine: SteppedEngine, health: Health, failures: SimpleQueue[str]) -> None:
    scheduler = Scheduler(LIMITS, health, failures.put)
    scheduler.start()
    busy = occupy(scheduler, engine)
    waiting = scheduler.submit(engine, [text(1)], interactive=False)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    assert eventually(lambda: refuses(scheduler, engine))
    engine.go_on()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert names(busy) == [99]
    with pytest.raises(Unavailable):
        waiting.result(WAIT_S)
    assert failures.empty()
    assert health.heard.empty()


def test_batches_are_of_one_engine(scheduler: Scheduler, engine: SteppedEngine) -> None:
    other_engine = SteppedEngine()
    occupy(scheduler, engine)
    one, other, third = (scheduler.submit(chosen, [text(n)], interactive=False) for n, chosen in enumerate((engine, other_engine, engine)))
    engine.go_on()
    assert engine.step() == [text(0), text(2)]
    assert other_engine.step() == [text(1)]
    assert [names(future) for future in (one, other, third)] == [[0], [1], [2]]
