"""
Plans, checks and the report, without servers.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nv_embed.evaluation import plot, report
from nv_embed.evaluation.collection import Document
from nv_embed.evaluation.errors import EvaluationFailed
from nv_embed.evaluation.plans import Plan, steps, stored_as
from nv_embed.evaluation.results import Latency, Measured, Result
from nv_embed.evaluation.run import Evaluation
from nv_embed.evaluation.searches import what_ran
from nv_embed.evaluation.served import Model, Server, check_dims
from nv_embed.evaluation.tables import PAGE_CHARS, PAGE_ROWS, pages

MODEL = Model("tiny", "1", 384, (384,), (256,), 256, "cpu", "fp32")
LATENCY = Latency(1.0, 2.0)


def result(plan: str, quality: float = 0.5, **about: Any) -> Result:
    return Result(plan, quality, quality, LATENCY, **about)


INDEX = {"index_bytes": 20, "index_bytes_per_row": 1.0}

MEASURED = Measured(
    "things",
    "en",
    20,
    5,
    0,
    LATENCY,
    [
        result("exact", 0.6, text="whole", dim=384, storage="halfvec", rescore=True, bytes_per_vector=776.0),
        result("exact prefix", 0.5, text="whole", dim=256, storage="halfvec", rescore=False, bytes_per_vector=520.0),
        result("hnsw 256 + re-score", 0.6, text="whole", dim=256, storage="halfvec", rescore=True, bytes_per_vector=520.0, **INDEX),
        result("BM25", 0.4),
    ],
)


def test_each_index_answers_with_and_without_the_whole_vectors() -> None:
    names = [[plan.name for plan in step.plans] for step in steps([384, 256], ["halfvec", "bit"], 384)]
    assert names == [
        ["exact", "exact prefix"],
        ["hnsw 384"],
        ["hnsw bit 384", "hnsw bit 384 + re-score"],
        ["hnsw 256", "hnsw 256 + re-score"],
        ["hnsw bit 256", "hnsw bit 256 + re-score"],
    ]


def test_the_column_has_the_first_type_that_it_can_have() -> None:
    assert [stored_as(each) for each in (["bit"], ["bit", "vector", "halfvec"], ["halfvec", "vector"])] == ["halfvec", "vector", "halfvec"]


def test_an_index_that_cannot_be_is_left_out_with_its_reason() -> None:
    assert [step.why_not is None for step in steps([4096, 2048], ["vector", "halfvec", "bit"], 4096)] == [True, False, False, True, False, True, True]


def test_a_plan_that_the_index_did_not_answer_is_not_called_by_it() -> None:
    plan = Plan(256, "halfvec", True, True, 384)
    assert what_ran(plan, 6, 6) == "hnsw 256 + re-score"
    assert what_ran(plan, 2, 6) == "hnsw 256 + re-score (2 of 6 by the index)"
    assert what_ran(Plan(384, "halfvec", False, True, 384), 0, 6) == "exact"


def test_dimensions_are_those_asked_for_or_all() -> None:
    assert check_dims(MODEL, ()) == [384, 256]
    assert check_dims(MODEL, (256, 384, 256)) == [384, 256]


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ((128, 384), "was not trained for 128 dimensions, only for 384; .*`nv-embed up -- --dims 256,128`"),
        ((512,), "makes vectors of 384 dimensions"),
    ],
)
def test_a_dimension_that_is_refused_comes_with_the_remedy(dims: tuple[int, ...], said: str) -> None:
    with pytest.raises(EvaluationFailed, match=said):
        check_dims(MODEL, dims)


def test_pages_end_by_rows_or_by_characters() -> None:
    short = {str(place): Document("", "short") for place in range(PAGE_ROWS + 1)}
    assert [len(page) for page in pages(short)] == [PAGE_ROWS, 1]
    long = {str(place): Document("", "x" * PAGE_CHARS) for place in range(3)}
    assert [[id for id, _ in page] for page in pages(long)] == [["0"], ["1"], ["2"]]


def test_latencies_are_those_that_were_measured() -> None:
    assert Latency.of([each / 1000 for each in range(200, 0, -1)]) == Latency(pytest.approx(100.5), pytest.approx(190))
    assert Latency.of([0.003]) == Latency(pytest.approx(3), pytest.approx(3))


def test_a_table_has_a_cell_for_each_column() -> None:
    by_text = Measured("things", "en", 20, 5, 0, LATENCY, [*MEASURED.results, result("exact", text="pieces of 8", dim=384, storage="halfvec")])
    for measured, first in ((MEASURED, "dim"), (by_text, "documents")):
        assert report.columns(measured)[:2] == ("plan", first)
        assert {len(row) for row in report.rows(measured)} == {len(report.columns(measured))}
    assert report.rows(MEASURED)[0] == ("exact", "384", "halfvec", "0.6000", "0.6000", "1.00 ms", "2.00 ms", "776", "")


def test_json_has_everything() -> None:
    document = report.as_json(Evaluation(Server("15", "0.8", "0.2"), MODEL, [], [MEASURED]))
    assert set(document) == {"model", "server", "schema", "tables", "collections", "cross"}
    assert document["collections"][0]["results"][2] == {
        "plan": "hnsw 256 + re-score",
        "ndcg_at_10": 0.6,
        "recall_at_5": 0.6,
        "latency": {"median_ms": 1.0, "p95_ms": 2.0},
        "text": "whole",
        "dim": 256,
        "storage": "halfvec",
        "rescore": True,
        "bytes_per_vector": 520.0,
        "index_bytes": 20,
        "index_bytes_per_row": 1.0,
        "build_s": None,
    }


def test_a_line_of_the_picture_differs_in_dimension_alone() -> None:
    lines = plot.series(MEASURED.results)
    assert {label: [each.dim for each in results] for (label, _), results in lines.items()} == {
        "exact halfvec": [256, 384],
        "hnsw halfvec, re-scored": [256],
    }


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    plot.plot([MEASURED, MEASURED], tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_package_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    """bm25s is hidden, as if it were not installed."""
    (tmp_path / "bm25s.py").write_text("raise ModuleNotFoundError('no', name='bm25s')\n")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from nv_embed.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "eval", str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "nv-embed: the Python package bm25s is missing: run `make setup`\n")


def test_the_command_line_starts_without_what_only_this_command_needs() -> None:
    code = "import nv_embed.cli, sys; print([name for name in ('bm25s', 'matplotlib', 'psycopg', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
