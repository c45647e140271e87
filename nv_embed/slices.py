"""
How many rows are written at once.

Rows that are written are kept from whoever else would change them, and their table from whoever wants it for a moment. What a row takes depends on
its table: a fraction of a millisecond without an index of vectors, milliseconds with one, and one may come while rows are written. So each generation
has its own measure, and no more than twice as many are written as went well just before: that four hundred rows were quick once says nothing of four
hundred rows after a graph was built and a hundred single rows were written.

In:  seconds that rows took      Out: how many to write next
"""

from math import ceil

WRITE_S = 0.04
"""What writing some rows at once may take: `lock_briefly` waits for 50 ms at a time."""

FEWEST_ROWS, FIRST_ROWS, MOST_ROWS = 2, 4, 1000


class Slices:
    """The measure of one lane.

    Args:
        write_s: what writing some rows at once may take.
    """

    def __init__(self, write_s: float = WRITE_S) -> None:
        self._write_s = write_s
        self._fitting: dict[int, int] = {}

    def rows(self, generation: int, left: int) -> int:
        """How many to write next, of so many that are left: in even parts, because from the few of a rest there would be far to go again."""
        return ceil(left / ceil(left / self._fitting.get(generation, FIRST_ROWS)))

    def wrote(self, generation: int, rows: int, seconds: float) -> None:
        fitting = rows * self._write_s / seconds if seconds else MOST_ROWS
        self._fitting[generation] = int(min(max(min(fitting, 2 * rows), FEWEST_ROWS), MOST_ROWS))
