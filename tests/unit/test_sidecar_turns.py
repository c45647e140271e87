"""
Interactive and bulk work in virtual time: an engine that takes one second for a unit of cost.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import given
from nv_embed_sidecar.engines import Capacity
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.lanes import Lane
from nv_embed_sidecar.queues import Request
from nv_embed_sidecar.turns import BULK_SHARE, Turns

BATCH_S = 10
BESIDE_S = 3


class SlowEngine(FakeEngine):
    capacity = Capacity(tokens_per_s=1, batch_tokens=BATCH_S, most_tokens=BATCH_S, beside_tokens=BESIDE_S)


class Simulation:
    """Work that arrives at given times and is computed one batch after the other.

    Attributes:
        busy_s: what the engine spent on each kind.
        waits_s: from each query's arrival to its answer.
    """

    def __init__(self, overhead_s: float = 0) -> None:
        self.now = 0.0
        self.turns = Turns()
        self.lane = Lane(SlowEngine())
        self.busy_s = {True: 0.0, False: 0.0}
        self.waits_s: list[float] = []
        self._overhead_s = overhead_s
        self._arrivals: list[tuple[float, bool, int]] = []
        self._arrived: dict[Request, float] = {}

    def arrive(self, at: float, cost: int, *, interactive: bool) -> None:
        self._arrivals.append((at, interactive, cost))
        self._arrivals.sort(reverse=True)

    def step(self) -> bool:
        """Compute the next batch; the queries that it answers are those whose texts it holds. Returns whether there was one."""
        self._admit()
        batch = self.turns.cut()
        if batch is None:
            return False
        seconds = batch.cost + self._overhead_s
        self.now += seconds
        self.busy_s[batch.queue is self.turns.interactive] += seconds
        self.turns.ran(batch, seconds)
        self.waits_s += [self.now - self._arrived[request] for request in batch.requests() if request in self._arrived]
        return True

    def _admit(self) -> None:
        while self._arrivals and self._arrivals[-1][0] <= self.now:
            at, interactive, cost = self._arrivals.pop()
            request = Request("client", self.lane, [[1] * cost])
            if interactive:
                self._arrived[request] = at
            self.turns.queue(interactive=interactive).enter(request)


@pytest.fixture
def simulation() -> Simulation:
    return Simulation()


def bulk(simulation: Simulation, seconds: int) -> None:
    for _ in range(seconds // 5):
        simulation.arrive(0, 5, interactive=False)


def test_queries_now_and_then_wait_for_the_one_batch_under_way_and_no_more(simulation: Simulation) -> None:
    bulk(simulation, 2000)
    for n in range(100):
        simulation.arrive(13.7 * n, 1, interactive=True)
    while len(simulation.waits_s) < 100:
        assert simulation.step()
    assert max(simulation.waits_s) <= BATCH_S + 2, "another query may have come just before"


@pytest.mark.parametrize("query_s", [1, 3, 7, 10])
@pytest.mark.parametrize("overhead_s", [0, 2])
def test_a_flood_of_queries_leaves_bulk_its_share(query_s: int, overhead_s: float) -> None:
    simulation = Simulation(overhead_s)
    bulk(simulation, 5000)
    for n in range(5000):
        simulation.arrive(n * query_s / 2, query_s, interactive=True)
    while simulation.now < 3000:
        assert simulation.step()
    assert simulation.busy_s[False] / simulation.now == pytest.approx(BULK_SHARE, abs=0.02)


@pytest.mark.parametrize("slowed", [1 / 2, 2 / 3, 9 / 10])
@pytest.mark.parametrize("query_s", [1, 2, 3])
def test_a_flood_of_queries_beside_bulk_batches_leaves_bulk_half_of_its_rate(simulation: Simulation, query_s: int, slowed: float) -> None:
    """A bulk batch goes on at a part of its speed while queries are computed beside it."""
    turns, computed = simulation.turns, 0.0
    bulk(simulation, 5000)
    while simulation.now < 1000:
        ask(simulation, query_s)
        batch = turns.cut()
        assert batch is not None
        begun, left = simulation.now, float(batch.cost)
        while left > 0:
            ask(simulation, query_s)
            beside = turns.cut_beside() if batch.queue is turns.bulk else None
            seconds = left if beside is None else min(beside.cost / slowed, left / slowed)
            left -= seconds * (1 if beside is None else slowed)
            simulation.now += seconds
            if beside is not None:
                turns.ran(beside, seconds)
        turns.ran(batch, simulation.now - begun)
        computed += batch.cost if batch.queue is turns.bulk else 0
    assert computed / simulation.now >= 0.5


def ask(simulation: Simulation, cost: int) -> None:
    """See to it that queries wait."""
    simulation.arrive(simulation.now, cost, interactive=True)
    simulation.arrive(simulation.now, 5, interactive=False)
    simulation._admit()


def test_what_bulk_had_while_no_query_came_is_not_held_against_it(simulation: Simulation) -> None:
    bulk(simulation, 5000)
    for n in range(1000):
        simulation.arrive(1000 + n, 1, interactive=True)
    while simulation.now < 1000:
        assert simulation.step()
    before_s = simulation.busy_s[False]
    while simulation.now < 1200:
        assert simulation.step()
    assert simulation.busy_s[False] - before_s >= 100


def test_where_there_is_no_bulk_work_queries_have_all_the_time(simulation: Simulation) -> None:
    for _ in range(100):
        simulation.arrive(0, 10, interactive=True)
    simulation.arrive(500, 5, interactive=False)
    while simulation.now < 505:
        assert simulation.step()
    assert simulation.busy_s[True] >= 500
    assert simulation.busy_s[False] == 0, "what queries had while nobody else wanted it is not held against them"


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, BATCH_S)), min_size=1, max_size=150))
def test_while_bulk_waits_queries_are_never_ahead_of_their_share_by_more_than_a_batch_or_two(queries: list[tuple[int, int]]) -> None:
    simulation = Simulation()
    bulk(simulation, 5000)
    for at, cost in queries:
        simulation.arrive(at, cost, interactive=True)
    while len(simulation.waits_s) < len(queries):
        assert simulation.step()
        due_s = simulation.busy_s[True] * BULK_SHARE / (1 - BULK_SHARE)
        assert due_s - simulation.busy_s[False] <= BATCH_S + BATCH_S * BULK_SHARE / (1 - BULK_SHARE)


def test_the_wait_that_a_full_queue_names_takes_account_of_the_other(simulation: Simulation) -> None:
    bulk(simulation, 100)
    simulation.step()
    assert simulation.turns.wait_s(simulation.turns.bulk) == pytest.approx(90)
    simulation.arrive(0, 10, interactive=True)
    simulation.arrive(0, 10, interactive=True)
    simulation.step()
    assert simulation.turns.wait_s(simulation.turns.bulk) == pytest.approx(90 / BULK_SHARE)
    assert simulation.turns.wait_s(simulation.turns.interactive) == pytest.approx(10 / (1 - BULK_SHARE))
