"""
Dashboards and alert rules name metrics that there are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from dashboards import DASHBOARDS, RULES, questions
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.metrics import Metrics
from nv_embed_sidecar.models import Models
from services import model

from nv_embed.counts import Counts
from nv_embed.exporter import REEMBEDDING_GAUGES, STATUS_GAUGES, _Database, _Done

OTHERS = {"up", "process_resident_memory_bytes"}
"""Those of Prometheus itself, and of every process."""


def known() -> Iterator[str]:
    """All samples that a sidecar and a worker can tell."""
    metrics = Metrics(Models([model(FakeEngine())]))
    metrics.watch(_Nobody(), lambda: True)
    text = metrics.text().decode()
    families = re.findall(r"^# TYPE (\S+) (\S+)", text, re.MULTILINE)
    for name, kind in families:
        yield from (f"{name}_bucket", f"{name}_sum", f"{name}_count") if kind == "histogram" else (name,)
    yield from (name for name, _ in (*STATUS_GAUGES, *REEMBEDDING_GAUGES))
    yield from (f"{family.name}_total" for family in _Done(Counts()).collect())
    yield from (family.name for family in _Database(_nowhere).collect())


class _Nobody:
    def waiting(self) -> dict[bool, object]:
        return {}

    def rates(self) -> dict[object, float]:
        return {}


def _nowhere(**_: object) -> object:
    raise psycopg.OperationalError


@pytest.mark.parametrize("file", [*DASHBOARDS, *RULES], ids=lambda file: file.name)
def test_every_metric_is_one_that_a_sidecar_or_a_worker_tells(file: Path) -> None:
    names = {name for question in questions(file) for name in re.findall(r"\b(?:nv_embed|process)_\w+|\bup\b", question.expr)}
    assert names
    assert names <= {*known(), *OTHERS}


def test_every_dashboard_can_be_told_from_the_others_and_names_its_source() -> None:
    read = [json.loads(file.read_text()) for file in DASHBOARDS]
    assert len({board["uid"] for board in read}) == len(read) == 2
    for board in read:
        assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
        assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"prometheus"}
