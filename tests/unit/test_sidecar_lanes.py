"""
What the scheduler learns of an engine.
"""

import numpy
import pytest
from nv_embed_sidecar.engines import Capacity
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.lanes import RECOVERY_BATCHES, Lane

RATE = FakeEngine.capacity.tokens_per_s
BUDGET = FakeEngine.capacity.batch_tokens


@pytest.fixture
def lane() -> Lane:
    return Lane(FakeEngine())


def test_it_begins_with_what_the_engine_was_measured_to_do_and_the_operator_decides_on_batches(lane: Lane) -> None:
    assert (lane.rate, lane.budget) == (RATE, BUDGET)
    assert lane.seconds(RATE) == 1
    assert Lane(FakeEngine(), batch_tokens=7).budget == 7


def test_full_batches_teach_it_the_rate_and_small_ones_do_not(lane: Lane) -> None:
    lane.computed(BUDGET / 10, seconds=1)
    assert lane.rate == RATE
    for _ in range(100):
        lane.computed(BUDGET, seconds=0.5)
    assert lane.rate == pytest.approx(2 * BUDGET, rel=0.01)


def test_batches_grow_with_an_engine_that_proves_faster_than_it_was_measured_to_be_but_not_beyond_its_memory() -> None:
    engine = FakeEngine()
    engine.capacity = Capacity(tokens_per_s=1000, batch_tokens=70, most_tokens=500)
    lane = Lane(engine)
    for _ in range(2000):
        lane.computed(lane.budget, seconds=lane.budget / 4000)
    assert lane.budget == pytest.approx(280, rel=0.01)
    for _ in range(2000):
        lane.computed(lane.budget, seconds=lane.budget / 100_000)
    assert lane.budget == 500
    for _ in range(100):
        lane.computed(lane.budget, seconds=10)
    assert lane.budget == 70


def test_a_batch_that_did_not_fit_halves_the_budget_and_batches_that_fit_win_it_back(lane: Lane) -> None:
    lane.halve(BUDGET)
    assert lane.budget == BUDGET / 2
    lane.halve(BUDGET / 8)
    assert lane.budget == BUDGET / 16, "the next try is smaller than the one that failed, however large the budget was"
    lane.computed(1, seconds=1)
    assert lane.budget == BUDGET / 16
    for _ in range(RECOVERY_BATCHES):
        lane.computed(lane.budget, seconds=1)
    assert lane.budget == BUDGET


def test_after_rebuilding_it_begins_anew(lane: Lane) -> None:
    lane.computed(BUDGET, seconds=1)
    lane.halve(BUDGET)
    lane.broken = True
    lane.reset()
    assert (lane.rate, lane.budget, lane.broken) == (RATE, BUDGET, False)


def test_a_probe_that_gives_no_numbers_fails(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    lane.probe()
    monkeypatch.setattr(lane.engine, "encode", lambda ids: numpy.full((len(ids), lane.engine.width), numpy.nan, dtype=numpy.float32))
    with pytest.raises(FloatingPointError):
        lane.probe()
