"""
Search plans: what each line of the table was found by.

In:  dimensions and storage types      Out: indexes, and the searches that each of them answers
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_DIMS = {"vector": 2000, "halfvec": 4000, "bit": 64000}
"""That an index of pgvector's can hold."""

STORAGES = ("halfvec", "vector", "bit")


@dataclass(frozen=True)
class Plan:
    """A way to search.

    Attributes:
        dim: of the vectors that are compared first.
        storage: what these are.
        is_indexed: by an HNSW index, else all rows are compared.
        rescore: whether the whole stored vectors rank what those have proposed.
        width: of the stored vectors.
    """

    dim: int
    storage: str
    is_indexed: bool
    rescore: bool
    width: int

    @property
    def name(self) -> str:
        if not self.is_indexed:
            return "exact" if self.dim == self.width else "exact prefix"
        index = f"hnsw bit {self.dim}" if self.storage == "bit" else f"hnsw {self.dim}"
        return f"{index} + re-score" if self.rescore else index


@dataclass(frozen=True)
class Step:
    """What is measured while one index is there, or none.

    Attributes:
        why_not: why there can be no such index; None where there can.
    """

    plans: tuple[Plan, ...]
    why_not: str | None = None

    @property
    def is_indexed(self) -> bool:
        return self.plans[0].is_indexed

    @property
    def dim(self) -> int:
        return self.plans[0].dim

    @property
    def storage(self) -> str:
        return self.plans[0].storage


def stored_as(storages: Sequence[str]) -> str:
    """The type of the column: the first of those asked for that can be one."""
    return next((each for each in storages if each != "bit"), "halfvec")


def steps(dims: Sequence[int], storages: Sequence[str], width: int) -> list[Step]:
    """All of them: first without an index, then with each."""
    stored = stored_as(storages)
    exact = Step(tuple(Plan(dim, stored, False, dim == width, width) for dim in dims))
    return [exact, *(_indexed(dim, storage, width) for dim in dims for storage in storages)]


def _indexed(dim: int, storage: str, width: int) -> Step:
    alone, rescored = (Plan(dim, storage, True, rescore, width) for rescore in (False, True))
    # The whole vectors cannot be ranked better by themselves.
    plans = (alone,) if dim == width and storage != "bit" else (alone, rescored)
    if dim > MOST_DIMS[storage]:
        return Step(plans, f"an index holds {MOST_DIMS[storage]:,} dimensions of a {storage} at most, so there is none of {dim:,}")
    return Step(plans)
