"""
Scores against values computed by hand.
"""

from math import log2

import pytest

from nv_embed.evaluation.scoring import hit_rate, ndcg_at, place_of_first_right, recall_at


def test_the_first_right_answer_is_counted_from_1() -> None:
    assert place_of_first_right(["a", "b", "c"], {"c", "b"}) == 2
    assert place_of_first_right(["a", "b"], {"z"}) is None
    assert place_of_first_right([], {"z"}) is None


def test_hit_rate_counts_questions_with_an_answer_in_time() -> None:
    places = [1, 3, None, 6]
    assert hit_rate(places, 1) == 0.25
    assert hit_rate(places, 5) == 0.5
    assert hit_rate([], 5) == 0


def test_recall_is_the_share_of_all_relevant_documents() -> None:
    grades = {"a": 1, "b": 2, "c": 1, "judged and irrelevant": 0}
    assert recall_at(["a", "judged and irrelevant", "b", "c"], grades, 3) == pytest.approx(2 / 3)
    assert recall_at(["a"], {"a": 0}, 3) == 0


def test_ndcg_of_the_ideal_ordering_is_1() -> None:
    assert ndcg_at(["b", "a", "x"], {"a": 1, "b": 2}, 10) == pytest.approx(1)


def test_ndcg_discounts_by_the_logarithm_of_the_place() -> None:
    assert ndcg_at(["x", "a"], {"a": 1}, 10) == pytest.approx(1 / log2(3))
    assert ndcg_at(["x", "y", "a"], {"a": 1}, 10) == pytest.approx(0.5)


def test_ndcg_gains_by_grade() -> None:
    # 1/log2(2) + 2/log2(3), over the ideal 2/log2(2) + 1/log2(3)
    assert ndcg_at(["a", "b"], {"a": 1, "b": 2}, 10) == pytest.approx((1 + 2 / log2(3)) / (2 + 1 / log2(3)))
    assert ndcg_at(["a", "b"], {"a": 1, "b": 2}, 10) == pytest.approx(0.8597186998521972)


def test_the_ideal_ordering_has_documents_that_were_not_found() -> None:
    # three relevant, one found: 1 / (1 + 1/log2(3) + 1/2)
    assert ndcg_at(["a"], {"a": 1, "b": 1, "c": 1}, 10) == pytest.approx(1 / (1 + 1 / log2(3) + 0.5))


def test_ndcg_ends_at_k_for_both_orderings() -> None:
    assert ndcg_at(["a", "b"], {"a": 1, "b": 1}, 1) == pytest.approx(1)
    assert ndcg_at(["x", "a"], {"a": 1}, 1) == 0


def test_ndcg_without_anything_relevant_is_0() -> None:
    assert ndcg_at(["a"], {}, 10) == 0
    assert ndcg_at([], {"a": 1}, 10) == 0
