"""
Several sidecars behind one endpoint: one is killed, one drains, both come back, and no statement notices.
"""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy
import psycopg
import pytest
from conftest import Connection
from program import eventually
from prometheus_client.parser import text_string_to_metric_families
from servers import Sidecar
from vectors import one

from nv_embed.client import Client
from nv_embed.errors import EngineFailure

SIDECARS = 3
BACK_IN_BALANCE_S = 10.0
LONGEST_S = 5.0
"""The deadline that the database gives each call."""


@dataclass
class Load:
    """Sessions that embed without a pause, until it is over.

    Attributes:
        seconds: that each statement took, with the moment at which it ended.
    """

    over: threading.Event = field(default_factory=threading.Event)
    seconds: list[tuple[float, float]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def run(self, db: Connection) -> None:
        number = 0
        while not self.over.is_set():
            begun = time.monotonic()
            try:
                db.execute("SELECT nv_embed('text number ' || %s, 384)", [number])
            except psycopg.Error as error:
                self.failures.append(error)
            self.seconds.append((time.monotonic(), time.monotonic() - begun))
            number += 1


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
        return port


@pytest.fixture
def sidecars(tmp_path: Path) -> Iterator[list[Sidecar]]:
    running = []
    for number in range(SIDECARS):
        folder = tmp_path / str(number)
        folder.mkdir()
        http = f"127.0.0.1:{free_port()}"
        running.append(Sidecar(["--model", "fake", "--fake-delay-s", "0.005", "--http", http], folder, f"127.0.0.1:{free_port()}"))
    try:
        for sidecar in running:
            sidecar.start()
        yield running
    finally:
        for sidecar in running:
            sidecar.stop()


def embedded(sidecar: Sidecar) -> float:
    """How many calls of Embed a sidecar has answered since it was started."""
    text = httpx.get(f"http://{sidecar.ready['http'][0]}/v1/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name == "nv_embed_requests_total" and sample.labels["call"] == "Embed")


def shares(sidecars: list[Sidecar], seconds: float) -> list[float]:
    """What each answers of all calls within a time."""
    before = [embedded(sidecar) for sidecar in sidecars]
    time.sleep(seconds)
    calls = [embedded(sidecar) - earlier for sidecar, earlier in zip(sidecars, before, strict=True)]
    return [count / max(sum(calls), 1) for count in calls]


def in_balance(sidecars: list[Sidecar]) -> bool:
    return min(shares(sidecars, 1.0)) > 0.8 / len(sidecars)


def test_one_that_is_killed_and_one_that_drains_fail_no_statement_and_are_back_in_balance(
    sidecars: list[Sidecar], connect: Callable[..., Connection]
) -> None:
    killed, drained, _ = sidecars
    db = connect()
    db.execute("SELECT nv_embed.configure(%s, timeout_s => %s::real)", [",".join(sidecar.address for sidecar in sidecars), LONGEST_S])
    load = Load()
    threads = [threading.Thread(target=load.run, args=[connect()]) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        assert eventually(lambda: in_balance(sidecars))
        killed.kill()
        time.sleep(2)
        drained.signal(signal.SIGTERM)
        assert drained.wait() == 0
        time.sleep(2)
        alone = len(load.seconds)
        killed.start()
        drained.start()
        back = time.monotonic()
        assert eventually(lambda: in_balance(sidecars), BACK_IN_BALANCE_S)
        assert time.monotonic() - back < BACK_IN_BALANCE_S
    finally:
        load.over.set()
        for thread in threads:
            thread.join(30)
    assert load.failures == []
    assert len(load.seconds) > alone > 100
    assert numpy.quantile([seconds for _, seconds in load.seconds], 0.99) < LONGEST_S
    assert one(db, "SELECT vector_dims(nv_embed('x', 384))") == 384


DIES_WHILE_IT_ANSWERS = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2_grpc
from nv_embed.proto import nv_embed_pb2_grpc

class Embedder(nv_embed_pb2_grpc.EmbedderServicer):
    def Embed(self, request, context):
        context.send_initial_metadata(())
        os.kill(os.getpid(), signal.SIGKILL)

server = grpc.server(ThreadPoolExecutor(2))
nv_embed_pb2_grpc.add_EmbedderServicer_to_server(Embedder(), server)
serving = health.HealthServicer()
serving.set("nv_embed.v1.Embedder", 1)
health_pb2_grpc.add_HealthServicer_to_server(serving, server)
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


def test_one_that_is_killed_while_it_answers_fails_no_call(sidecars: list[Sidecar]) -> None:
    """gRPC itself repeats no call whose answer has begun."""
    with subprocess.Popen([sys.executable, "-c", DIES_WHILE_IT_ANSWERS], stdout=subprocess.PIPE, text=True) as dying:
        assert dying.stdout is not None
        port = int(dying.stdout.readline())
        with Client(f"127.0.0.1:{port},{sidecars[0].address}", timeout_s=LONGEST_S) as client:
            try:
                assert eventually(lambda: len(client.embed(["text"])) == 1 and dying.poll() is not None)
            finally:
                dying.kill()


def test_one_whose_engine_is_broken_is_left_out(sidecars: list[Sidecar], tmp_path: Path) -> None:
    broken, *well = sidecars
    broken.stop()
    fault = tmp_path / "fault"
    broken.arguments += ["--fake-fault", str(fault)]
    broken.start()
    with Client(",".join(sidecar.address for sidecar in sidecars), timeout_s=LONGEST_S) as client:
        assert eventually(lambda: len(client.embed(["a"])) == 1 and embedded(broken) > 0)
        fault.write_text("error")
        with Client(broken.address, timeout_s=LONGEST_S) as direct:
            with pytest.raises(EngineFailure):
                direct.embed(["a b"])
            assert direct.health() == "NOT_SERVING"
            for number in range(60):
                assert client.embed([f"text {number}"]).shape == (1, 2048)
    assert all(embedded(sidecar) > 20 for sidecar in well)


def test_one_that_is_full_is_passed_over(sidecars: list[Sidecar]) -> None:
    full, *_ = sidecars
    full.stop()
    full.arguments += ["--max-queue-texts", "1"]
    full.start()
    with Client(",".join(sidecar.address for sidecar in sidecars), timeout_s=30) as client:
        assert client.embed([f"text {number}" for number in range(6000)]).shape == (6000, 2048)
