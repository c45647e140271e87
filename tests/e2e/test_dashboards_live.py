"""
A real Prometheus asks a sidecar and a worker while the demo runs, and every line of every dashboard has something to show.
"""

import math
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
import yaml
from dashboards import DASHBOARDS, DOCKER, RULES, questions
from program import Program, eventually, program_with_own_home, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORKER_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")


@contextmanager
def process(*command: str, **streams: int) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **streams) as running:
        try:
            yield running
        finally:
            running.terminate()


@contextmanager
def metrics_of_a_worker(dsn: str) -> Iterator[str]:
    command = (sys.executable, "-m", "nv_embed.cli", "worker", "--database-url", dsn, "--metrics", "127.0.0.1:0")
    with process(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        found = WORKER_ADDRESS.search(running.stderr.readline())
        assert found is not None
        yield found.group()


@contextmanager
def prometheus(folder: Path, sidecar: str, worker: str) -> Iterator[httpx.Client]:
    """One of the rules and jobs of `docker/prometheus`, which asks these two, and every second."""
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(file) for file in RULES]
    addresses = {"sidecar": sidecar, "worker": worker}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ("prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}")
    with (
        (folder / "log").open("w") as log,
        process(*command, stdout=log.fileno(), stderr=subprocess.STDOUT),
        httpx.Client(base_url=f"http://{address}/api/v1", timeout=30) as client,
    ):
        assert eventually(lambda: is_ready(client), 60), (folder / "log").read_text()
        yield client


def is_ready(client: httpx.Client) -> bool:
    try:
        targets = client.get("/targets").json()["data"]["activeTargets"]
    except (httpx.HTTPError, ValueError):
        return False
    return [target["health"] for target in targets] == ["up", "up"]


def shown(client: httpx.Client, expr: str, since: float) -> list[float]:
    """All numbers that a line of a panel has shown since then."""
    answer = client.get("/query_range", params={"query": expr, "start": since, "end": time.time(), "step": 1}).json()
    assert answer["status"] == "success", answer
    values = [float(value) for series in answer["data"]["result"] for _, value in series["values"]]
    return [value for value in values if math.isfinite(value)]


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    with program_with_own_home() as own:
        yield own


def test_every_line_of_every_dashboard_shows_what_the_demo_does(program: Program, tmp_path: Path) -> None:
    assert shutil.which("prometheus"), "make test-slow installs Debian's package prometheus"
    succeeded(program("up", "--model", "fake", "--", "--http", "127.0.0.1:0"))
    (sidecar,) = program.status()["sidecar"]["http"]
    dsn = program.status()["dsn"]
    since = time.time()
    with metrics_of_a_worker(dsn) as worker, prometheus(tmp_path, sidecar, worker) as client:
        succeeded(program("demo", "--limit", "1000", "--keep"))
        with psycopg.connect(dsn, autocommit=True) as db:
            db.execute("SELECT nv_embed.alter_auto_embed('python_docs', mode => 'async')")
            db.execute("SELECT nv_embed.reembed('python_docs', dim => 512, rows_per_s => 40)")
            db.execute("UPDATE python_docs SET doc = doc || ' as of today'")
            lines = [line for file in DASHBOARDS for line in questions(file)]

            def are_shown() -> bool:
                # Prometheus looks once a second, and what waits is embedded in less.
                db.execute("UPDATE python_docs SET doc = doc || '.' WHERE random() < 0.5")
                return all(shown(client, line.expr, since) for line in lines)

            assert eventually(are_shown, 60), [line for line in lines if not shown(client, line.expr, since)]
        moved = {line.title: max(shown(client, line.expr, since)) for line in lines}
        rules = client.get("/rules").json()["data"]["groups"]
    assert moved["Coverage"] == 1
    for title in (
        "Texts a second",
        "Requests a second, by outcome",
        "Tokens a second, by model",
        "Rows embedded a second",
        "Rows that wait",
        "Time of a batch",
    ):
        assert moved[title] > 0, title
    assert [rule["lastError"] for group in rules for rule in group["rules"] if rule["health"] != "ok"] == []
    assert len(rules) == len(RULES)
