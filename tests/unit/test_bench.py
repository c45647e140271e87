"""
What the benchmarks count and compute, apart from what they measure.
"""

import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy
import pytest

sys.path.extend(str(Path(__file__).parents[2] / folder) for folder in ("bench", "bench/competitors"))

from engine import batches
from flops import Shape
from machine import paired_ratio, percentile, table
from race import least_cosine

BENCH = Path(__file__).parents[2] / "bench"
SCRIPTS = sorted(file for file in BENCH.glob("*.py") if "__main__" in file.read_text())
MINILM = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12, "hidden_act": "gelu"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_benchmark_says_how_to_use_it(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout


@pytest.mark.parametrize("name", ["encoder", "latency", "quality", "soak"])
def test_a_benchmark_without_texts_says_that_it_is_skipped(name: str) -> None:
    done = subprocess.run([sys.executable, str(BENCH / f"{name}.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("skipped: ")


def test_a_token_of_the_1b_model_costs_what_its_card_says() -> None:
    shape = Shape.read(checkpoints.LLAMA_1B)
    assert shape.linear_flop == pytest.approx(1.946e9, rel=1e-3)
    assert shape.flop([300]) == 300 * (shape.linear_flop + 131_072 * 300)


def test_a_token_of_minilm_costs_twice_its_layers_weights() -> None:
    assert Shape.read(MINILM).linear_flop == 2 * 6 * (4 * 384 * 384 + 2 * 384 * 1536)


def test_texts_cost_what_each_of_them_costs() -> None:
    shape = Shape.read(MINILM)
    assert shape.flop([20, 300]) == shape.flop([20]) + shape.flop([300])


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 95, 99, 100)] == [1, 100, 190, 198, 200]
    assert percentile([7.0], 95) == 7


def test_a_ratio_is_taken_between_neighbours_in_time() -> None:
    assert paired_ratio([2, 20, 200], [1, 10, 50]) == 2


def test_batches_hold_every_text_once_and_no_more_than_their_budget() -> None:
    costs = [5, 90, 30, 250, 40, 10, 60, 5]
    cut = batches(costs, 100)
    assert sorted(position for batch in cut for position in batch) == list(range(len(costs)))
    assert all(len(batch) == 1 or sum(costs[position] for position in batch) <= 100 for batch in cut)
    assert len(cut) == 4


def test_the_least_cosine_is_that_of_the_farthest_pair() -> None:
    turned = numpy.array([[1, 0], [0.6, 0.8]], dtype=numpy.float32)
    assert least_cosine(turned, numpy.array([[1, 0], [1, 0]], dtype=numpy.float32)) == pytest.approx(0.6)


def test_a_table_is_one_line_a_row() -> None:
    assert table(("", "texts/s"), [("ours", "12"), ("theirs", "3")]) == "|  | texts/s |\n| --- | ---: |\n| ours | 12 |\n| theirs | 3 |"
