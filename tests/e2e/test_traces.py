"""
Traces of programs as they are run: the sidecar, a worker, and what they do without a collector.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from collector import Collector, collecting
from conftest import Connection
from installs import Install
from program import command
from servers import running_sidecar

from nv_embed.client import Client

METHOD = "nv_embed.v1.Embedder/Embed"

PROGRAM = """
import os, pathlib, signal, sys, threading, time
from nv_embed_sidecar.__main__ import run
from nv_embed_sidecar.settings import Settings

ready = pathlib.Path(sys.argv[1])

def call():
    while not ready.exists():
        time.sleep(0.02)
    from nv_embed.client import Client
    try:
        with Client(f"unix:{ready}.sock") as client:
            assert client.embed(["one"]).shape == (1, 2048)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=call).start()
run(Settings(models=("fake",), listen=(f"unix:{ready}.sock",), http=("127.0.0.1:0",), ready_file=ready, otlp=sys.argv[2] or None))
print(sorted(name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))))
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


def modules_of_a_sidecar(folder: Path, otlp: str) -> str:
    """Which of the SDK's modules a sidecar has in memory that has answered a call."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    ready = folder / f"modules{len(otlp)}"
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ready), otlp], env=env, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1]


def test_without_a_collector_the_sidecar_loads_nothing_of_the_sdk(folder: Path, collector: Collector) -> None:
    assert modules_of_a_sidecar(folder, "") == "[]"
    assert "opentelemetry.sdk.trace" in modules_of_a_sidecar(folder, collector.endpoint)


def test_the_last_spans_are_sent_when_the_sidecar_ends(folder: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with running_sidecar(folder, "--model", "fake", "--otlp", collector.endpoint, name="ending.sock") as sidecar:
        with Client(sidecar.address) as client:
            client.embed(["one"])
        assert collector.spans() == []
        sidecar.stop()
        assert sidecar.wait() == 0
    assert {METHOD, "tokenise", "queue", "engine"} <= {span.name for span in collector.spans()}


def test_a_sidecar_whose_collector_is_away_answers_and_ends_in_time(folder: Path) -> None:
    with collecting() as gone:
        endpoint = gone.endpoint
    with running_sidecar(folder, "--model", "fake", "--otlp", endpoint, name="away.sock") as sidecar:
        with Client(sidecar.address, timeout_s=5) as client:
            for _ in range(20):
                client.embed(["one"])
        begun = time.monotonic()
        sidecar.stop()
        assert sidecar.wait() == 0
        assert time.monotonic() - begun < 15


def test_a_worker_sends_its_batches(
    install: Install, own_database: str, connect: Callable[..., Connection], sidecar: object, collector: Collector
) -> None:
    connection = connect()
    connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
    connection.execute("SELECT nv_embed.auto_embed('notes', '{body}', dim => 384, mode => 'async')")
    connection.execute("INSERT INTO notes SELECT n, 'note ' || n FROM generate_series(1, 5) AS n")
    arguments = ["worker", "--database-url", install.dsn(own_database), "--once", "--otlp", collector.endpoint]
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    batch = collector.named("batch")["batch"]
    assert (batch.service, batch.says["nv_embed.rows"]) == ("nv-embed-worker", 5)


def test_a_collector_without_a_scheme_is_refused_in_one_line() -> None:
    arguments = ["-m", "nv_embed_sidecar", "--model", "fake", "--otlp", "localhost:4317"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "nv_embed_sidecar: 'localhost:4317' is not where a collector can be (give http://host:4317, or https:// for TLS)"
