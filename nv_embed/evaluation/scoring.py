"""
How good an ordering of search results is.

In:  what was found, best first, and what would have been right      Out: numbers from 0 to 1
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import log2


def place_of_first_right(found: Sequence[str], right: Collection[str]) -> int | None:
    """The place, counted from 1, of the first right answer; None where there is none."""
    return next((place for place, name in enumerate(found, 1) if name in right), None)


def hit_rate(places: Iterable[int | None], k: int) -> float:
    """The share of questions with a right answer among their first `k`. With any one right answer being enough, this is Recall@k."""
    hits = [place is not None and place <= k for place in places]
    return sum(hits) / len(hits) if hits else 0.0


def recall_at(found: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """The share of all relevant documents that are among the first `k`."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    return len(relevant.intersection(found[:k])) / len(relevant) if relevant else 0.0


def ndcg_at(found: Sequence[str], grades: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain of the first `k`.

    The gain of a document is its grade, discounted by log2(place + 1). The ideal ordering is over all judged documents, whether found or not.

    Source: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, 2002; as trec_eval computes it.
    """
    ideal = _gain(sorted(grades.values(), reverse=True)[:k])
    return _gain([grades.get(name, 0) for name in found[:k]]) / ideal if ideal > 0 else 0.0


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / log2(place + 1) for place, grade in enumerate(grades, 1))
