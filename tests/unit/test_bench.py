"""
What the benchmarks count and compute, apart from what they measure.
"""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import checkpoints
import numpy
import pytest

sys.path.extend(str(Path(__file__).parents[2] / folder) for folder in ("bench", "bench/competitors"))

import search
import storage
import synthetic
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


@pytest.mark.parametrize("name", ["encoder", "latency", "quality", "soak", "storage"])
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


def test_synthetic_vectors_have_unit_length_as_they_are_stored() -> None:
    made = synthetic.Collection(1000)
    for vectors in (*made.documents(), made.queries(50)):
        assert numpy.array_equal(vectors, vectors.astype(numpy.float16))
        assert numpy.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)


def test_synthetic_vectors_are_those_of_their_seed() -> None:
    (first,), (again,), (other,) = (synthetic.Collection(500, seed=seed).documents() for seed in (1, 1, 2))
    assert numpy.array_equal(first, again)
    assert not numpy.array_equal(first, other)
    assert numpy.array_equal(synthetic.Collection(500).queries(20), synthetic.Collection(500).queries(20))


def test_synthetic_vectors_come_in_blocks_that_make_up_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK", 100)
    assert [len(block) for block in synthetic.Collection(250, 64).documents()] == [100, 100, 50]


def test_the_variance_of_synthetic_vectors_decays_as_their_law_says() -> None:
    (vectors,) = synthetic.Collection(5000).documents()
    octaves = [2**power for power in range(4, 11)]
    variances = [float((vectors[:, first : 2 * first] ** 2).mean()) for first in octaves]
    slope, _ = numpy.polyfit(numpy.log(octaves), numpy.log(variances), 1)
    assert slope == pytest.approx(-2 * synthetic.DECAY, abs=0.1)


def test_a_prefix_of_synthetic_vectors_ranks_nearly_as_the_whole() -> None:
    made = synthetic.Collection(10_000)
    queries = made.queries(40)
    wanted, cosines = synthetic.nearest(made, queries, 10)
    by_prefix, _ = synthetic.nearest(made, queries, 10, 384)
    found = numpy.mean([synthetic.recall(list(keys), rows) for keys, rows in zip(by_prefix, wanted, strict=True)])
    assert 0.8 < found < 0.97
    assert 0.7 < numpy.median(cosines[:, 0]) < 0.95
    assert numpy.median(cosines[:, -1]) > 0.4


def test_the_nearest_are_found_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = synthetic.Collection(230, 64)
    queries = made.queries(7)
    monkeypatch.setattr(synthetic, "BLOCK", 100)
    vectors = numpy.concatenate(list(made.documents()))
    keys, cosines = synthetic.nearest(made, queries, 10)
    all_cosines = queries @ vectors.T / numpy.outer(numpy.linalg.norm(queries, axis=1), numpy.linalg.norm(vectors, axis=1))
    assert numpy.array_equal(keys, numpy.argsort(-all_cosines, axis=1)[:, :10])
    assert cosines == pytest.approx(numpy.take_along_axis(all_cosines, keys, axis=1), abs=1e-6)


def test_recall_counts_what_was_wanted_in_any_order() -> None:
    wanted = numpy.array([3, 1, 2, 9])
    assert [synthetic.recall(found, wanted) for found in ([9, 2, 1, 3], [1, 2, 5, 6], [])] == [1, 0.5, 0]


def test_the_setting_chosen_is_the_quickest_of_those_that_find_enough() -> None:
    tried = ((40, 0.98, 1), (80, 0.999, 3), (120, 1.0, 2), (200, 1.0, 4))
    plans = [search.Plan(search.NARROW, width, 40, [found], [seconds]) for width, found, seconds in tried]
    chosen = search.choose(plans, [search.FULL, search.NARROW], 0.999)
    assert {name: plan.width for name, plan in chosen.items()} == {search.NARROW.name: 120}
    assert chosen[search.NARROW.name].seconds == []


def test_the_statement_of_a_search_orders_by_what_is_indexed() -> None:
    assert "ORDER BY embedding <=> " in search.FULL.statement(10)
    assert "ORDER BY subvector(embedding, 1, 384)::halfvec(384) <=> " in search.NARROW.statement(40)
    assert "ORDER BY binary_quantize(embedding)::bit(2048) <~> " in search.BITS.statement(160)
    assert search.NARROW.statement(40).index("LIMIT 40") < search.NARROW.statement(40).index("LIMIT 10")


@pytest.mark.parametrize(
    ("dim", "kind", "indexed"),
    [(384, "vector", "vector"), (2048, "vector", "halfvec"), (4096, "vector", ""), (2048, "halfvec", "halfvec"), (384, "bit", "bit")],
)
def test_a_vector_too_wide_for_an_index_is_indexed_as_halves_or_not_at_all(dim: int, kind: str, indexed: str) -> None:
    assert storage.Layout("pieces", dim, kind).indexed == indexed


@pytest.mark.parametrize(("kind", "size"), [("vector", 4 + 4 * 384), ("halfvec", 4 + 2 * 384), ("bit", 4 + 384 // 8)])
def test_a_stored_vector_has_the_bytes_of_its_type(kind: str, size: int) -> None:
    assert len(storage.wire(numpy.random.default_rng(1).standard_normal(384), kind)) == size


def test_the_steps_from_pieces_to_bits_change_one_thing_each() -> None:
    assert set(storage.STEPS) <= set(storage.LAYOUTS)
    for before, after in pairwise(storage.STEPS):
        assert sum([before.unit != after.unit, before.dim != after.dim, before.storage != after.storage]) == 1
