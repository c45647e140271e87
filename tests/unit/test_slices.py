"""
How many rows are written at once, without a clock.
"""

from nv_embed.slices import FEWEST_ROWS, FIRST_ROWS, MOST_ROWS, Slices

QUICK_S, SLOW_S = 0.00001, 0.005
"""A row without a graph, and one with."""


def write(slices: Slices, count: int, row_s: float, generation: int = 1) -> list[int]:
    """The parts in which so many rows are written."""
    parts = []
    while (left := count - sum(parts)) > 0:
        parts.append(slices.rows(generation, left))
        slices.wrote(generation, parts[-1], parts[-1] * row_s)
    return parts


def test_the_first_rows_are_few_and_more_follow_as_it_goes_well() -> None:
    assert write(Slices(), 500, QUICK_S)[:5] == [FIRST_ROWS, 8, 16, 32, 63]


def test_no_more_are_written_than_the_time_allows() -> None:
    slices = Slices(write_s=0.04)
    write(slices, 500, SLOW_S)
    assert max(write(slices, 500, SLOW_S)) == 8


def test_there_is_always_something_written() -> None:
    slices = Slices()
    write(slices, 10, 60.0)
    assert write(slices, 10, 60.0) == [FEWEST_ROWS] * 5


def test_what_is_left_is_written_in_even_parts() -> None:
    slices = Slices(write_s=0.04)
    write(slices, 2000, 0.0004)
    assert write(slices, 101, 0.0004) == [51, 50]


def test_a_statement_holds_no_more_than_the_most_rows() -> None:
    slices = Slices()
    write(slices, 5000, 0.0)
    assert max(write(slices, 5000, 0.0)) == MOST_ROWS


def test_what_was_quick_before_single_rows_came_is_not_believed_any_more() -> None:
    slices = Slices()
    write(slices, 5000, QUICK_S)
    write(slices, 1, SLOW_S)
    assert max(write(slices, 500, SLOW_S)) <= 8


def test_a_quick_table_says_nothing_of_another() -> None:
    slices = Slices()
    write(slices, 5000, QUICK_S, generation=1)
    assert max(write(slices, 500, SLOW_S, generation=2)) <= 8
