"""
Who waits and who goes next, without threads and without time.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import count

import hypothesis.strategies as st
import pytest
from hypothesis import given
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.lanes import Lane
from nv_embed_sidecar.queues import Batch, Limits, Queue, Request

from nv_embed.errors import EngineFailure

BUDGET = 8

sizes = st.lists(st.integers(1, 2 * BUDGET), min_size=1, max_size=6)


@pytest.fixture
def lane() -> Lane:
    return a_lane()


@pytest.fixture
def queue() -> Queue:
    return Queue()


def a_lane() -> Lane:
    return Lane(FakeEngine(), batch_tokens=BUDGET)


def enter(queue: Queue, lane: Lane, client: str, lengths: Sequence[int]) -> Request:
    request = Request(client, lane, [[1] * length for length in lengths])
    request.future.add_done_callback(lambda _: queue.leave(request))
    queue.enter(request)
    return request


def served(batch: Batch) -> Counter[str]:
    """Cost by client."""
    costs: Counter[str] = Counter()
    for request, positions in batch.parts:
        costs[request.client] += sum(len(request.ids[position]) for position in positions)
    return costs


def cut(queue: Queue) -> Batch:
    batch = queue.cut()
    assert batch is not None
    return batch


def test_a_client_with_a_hundred_requests_does_not_delay_the_one_of_another(queue: Queue, lane: Lane) -> None:
    for _ in range(100):
        enter(queue, lane, "many", [2] * 10)
    for _ in range(20):
        cut(queue)
    enter(queue, lane, "one", [2, 2])
    assert served(cut(queue))["one"] == 4


def test_requests_of_one_client_are_served_in_their_order(queue: Queue, lane: Lane) -> None:
    requests = [enter(queue, lane, "a", [3, 3]) for _ in range(5)]
    order = [request for _ in range(5) for request, _ in cut(queue).parts]
    assert [request for n, request in enumerate(order) if request not in order[:n]] == requests


@given(st.lists(sizes, min_size=20, max_size=40), st.lists(sizes, min_size=20, max_size=40))
def test_two_clients_who_always_want_something_are_served_alike_however_they_cut_it(ones: list[list[int]], others: list[list[int]]) -> None:
    queue, lane = Queue(), a_lane()
    for client, requests in (("one", ones), ("other", others)):
        for lengths in requests:
            enter(queue, lane, client, lengths)
    total: Counter[str] = Counter()
    while {request.client for request in queue} == {"one", "other"}:
        total += served(cut(queue))
        assert abs(total["one"] - total["other"]) <= BUDGET + 2 * 2 * BUDGET


def test_whoever_sends_long_texts_one_by_one_gets_no_more_than_others(queue: Queue, lane: Lane) -> None:
    enter(queue, lane, "short", [1] * 2000)
    total: Counter[str] = Counter()
    for _ in range(100):
        if all(request.client != "long" for request in queue):
            enter(queue, lane, "long", [8 * BUDGET])
        total += served(cut(queue))
    assert total["long"] <= total["short"] + 16 * BUDGET


def test_no_crowd_of_newcomers_holds_up_who_was_there_before(queue: Queue, lane: Lane) -> None:
    old = enter(queue, lane, "old", [50 * BUDGET, 1])
    assert served(cut(queue)) == {"old": 50 * BUDGET}
    names = count()
    for _ in range(300):
        for _ in range(4):
            enter(queue, lane, f"new {next(names)}", [BUDGET // 4])
        cut(queue)
    assert not old.waiting, "it has its turn when the others have had as much"


def test_a_client_that_comes_back_has_saved_nothing_up(queue: Queue, lane: Lane) -> None:
    enter(queue, lane, "back", [1])
    cut(queue)
    enter(queue, lane, "steady", [1] * 1000)
    for _ in range(50):
        cut(queue)
    enter(queue, lane, "back", [1] * 100)
    total = sum((served(cut(queue)) for _ in range(10)), Counter())
    assert abs(total["back"] - total["steady"]) <= 2


def test_a_text_that_does_not_fit_leaves_its_room_to_others_and_is_next(queue: Queue, lane: Lane) -> None:
    enter(queue, lane, "a", [6])
    enter(queue, lane, "b", [4])
    enter(queue, lane, "c", [2])
    assert served(cut(queue)) == {"a": 6, "c": 2}
    assert served(cut(queue)) == {"b": 4}
    assert queue.is_empty()


def test_what_is_put_back_goes_first(queue: Queue, lane: Lane) -> None:
    enter(queue, lane, "a", [4, 4])
    enter(queue, lane, "a", [4])
    batch = cut(queue)
    queue.put_back(batch)
    again = cut(queue)
    assert again.parts == batch.parts
    assert queue.texts() == 1


def test_what_is_put_back_is_not_charged_twice(queue: Queue, lane: Lane) -> None:
    enter(queue, lane, "unlucky", [BUDGET] * 10)
    enter(queue, lane, "other", [BUDGET] * 10)
    for _ in range(5):
        batch = cut(queue)
        assert served(batch) == {"unlucky": BUDGET}
        queue.put_back(batch)
    total = sum((served(cut(queue)) for _ in range(4)), Counter())
    assert total == {"unlucky": 2 * BUDGET, "other": 2 * BUDGET}


def test_parts_of_a_failed_batch_go_first_unless_they_are_given_up(queue: Queue, lane: Lane) -> None:
    requests = [enter(queue, lane, "a", [2]) for _ in range(4)]
    queue.suspect(cut(queue).halves())
    enter(queue, lane, "b", [1])
    requests[3].future.cancel()
    assert cut(queue).requests() == [requests[2]]
    requests[0].future.cancel()
    requests[1].future.cancel()
    assert served(cut(queue)) == {"b": 1}


def test_what_failed_or_was_given_up_meanwhile_is_not_put_back(queue: Queue, lane: Lane) -> None:
    failed, given_up, wanted = (enter(queue, lane, "a", [2]) for _ in range(3))
    batch = cut(queue)
    failed.fail(EngineFailure("it failed"))
    given_up.future.cancel()
    queue.put_back(batch)
    assert list(queue) == [wanted]


@given(st.lists(st.tuples(st.sampled_from("abc"), sizes, st.sampled_from(["cut", "cut and put back", "divide", "cancel", "wait"])), max_size=40))
def test_every_text_is_computed_once_in_batches_that_keep_to_the_budget(steps: list[tuple[str, list[int], str]]) -> None:
    queue, lanes = Queue(), (a_lane(), a_lane())
    requests: list[Request] = []
    computed: Counter[tuple[int, int]] = Counter()

    def compute(batch: Batch) -> None:
        assert batch.texts == 1 or batch.cost <= BUDGET
        assert len({request.lane for request in batch.requests()}) == 1
        computed.update((requests.index(request), position) for request, positions in batch.parts for position in positions)

    for client, lengths, then in steps:
        requests.append(enter(queue, lanes[len(lengths) % 2], client, lengths))
        if then == "cancel":
            requests[len(requests) // 2].future.cancel()
        elif then != "wait" and (batch := queue.cut()) is not None:
            if then == "cut":
                compute(batch)
            elif then == "divide":
                queue.suspect(batch.halves())
            else:
                queue.put_back(batch)
    while (batch := queue.cut()) is not None:
        compute(batch)
    assert queue.is_empty()
    wanted = {(n, position) for n, request in enumerate(requests) if not request.future.cancelled() for position in range(len(request.ids))}
    assert wanted <= set(computed)
    assert set(computed.values()) <= {1}


LIMITS = Limits(texts=50, cost=100, requests=10)


def held(queue: Queue, client: str | None = None) -> tuple[int, float, int]:
    requests = [request for request in queue if client in (None, request.client)]
    return sum(len(request.waiting) for request in requests), sum(request.cost for request in requests), len(requests)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(st.integers(1, 150), min_size=1, max_size=60), st.booleans()), max_size=60))
def test_what_waits_exceeds_the_limits_by_one_request_at_most(steps: list[tuple[str, list[int], bool]]) -> None:
    queue, lane = Queue(), a_lane()
    largest = (60, 150 * 60, 1)
    for client, lengths, computes in steps:
        if queue.has_room(LIMITS, client, len(lengths), sum(lengths)):
            enter(queue, lane, client, lengths)
        elif computes:
            queue.cut()
        for have, limit, one in zip(held(queue), (LIMITS.texts, LIMITS.cost, LIMITS.requests), largest, strict=True):
            assert have <= limit + one


# The greedy client's requests are small enough: an eighth of the queue each.
@given(st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=6), max_size=60), st.lists(st.integers(1, 150), min_size=1, max_size=60))
def test_however_much_one_client_asks_for_there_is_room_for_the_first_request_of_another(greedy: list[list[int]], first: list[int]) -> None:
    queue, lane = Queue(), a_lane()
    for lengths in greedy:
        if queue.has_room(LIMITS, "greedy", len(lengths), sum(lengths)):
            enter(queue, lane, "greedy", lengths)
    assert queue.has_room(LIMITS, "other", len(first), sum(first))
