"""
Dashboards and alert rules as they lie in `docker/`, and what they ask of Prometheus.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

DOCKER = Path(__file__).resolve().parents[1] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((DOCKER / "prometheus" / "rules").glob("*.yaml"))


@dataclass(frozen=True)
class Question:
    """What one line of a panel shows, or one alert waits for."""

    title: str
    expr: str


def questions(file: Path) -> Iterator[Question]:
    if file.suffix == ".json":
        for panel in json.loads(file.read_text())["panels"]:
            yield from (Question(panel["title"], target["expr"]) for target in panel["targets"])
    else:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from (Question(rule["alert"], rule["expr"]) for rule in group["rules"])
