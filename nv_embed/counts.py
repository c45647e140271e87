"""
What the lanes of a worker have done together, by generation.

In:  jobs claimed, rows settled, by `lanes.py`      Out: rates for the database (`worker.py`), totals for Prometheus (`exporter.py`)
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nv_embed.jobs import Generation, Job


@dataclass
class Count:
    """What was done of one generation's rows."""

    relation: str = ""
    claimed: int = 0
    embedded: int = 0
    failed: int = 0


class Counts:
    """What the lanes of a worker have done together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[int, Count] = defaultdict(Count)

    def claim(self, jobs: Sequence[Job], generations: Mapping[int, Generation]) -> None:
        with self._lock:
            for job in jobs:
                count = self._counts[job.generation]
                count.relation = generations[job.generation].relation
                count.claimed += 1

    def add(self, generation: int, *, embedded: int = 0, failed: int = 0) -> None:
        with self._lock:
            self._counts[generation].embedded += embedded
            self._counts[generation].failed += failed

    def by_generation(self) -> dict[int, Count]:
        with self._lock:
            return {id: replace(count) for id, count in self._counts.items()}

    @property
    def embedded(self) -> int:
        return sum(count.embedded for count in self.by_generation().values())

    @property
    def failed(self) -> int:
        return sum(count.failed for count in self.by_generation().values())
