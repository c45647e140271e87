"""
Faults of the device, rehearsed with a sidecar as a process: what callers, health checks and a supervisor see of them.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from program import eventually
from servers import Sidecar, running_sidecar, shared_folder

from nv_embed.client import Client
from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, Unavailable

WAIT_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@pytest.fixture
def fault(folder: Path) -> Path:
    """While it exists, the fake engine has the fault that it names."""
    return folder / "fault"


@pytest.fixture
def sidecar(folder: Path, fault: Path) -> Iterator[Sidecar]:
    with running_sidecar(folder, "--model", "fake", "--fake-fault", str(fault), "--fake-delay-s", "0.1", "--hang-s", "1") as running:
        yield running
        fault.unlink(missing_ok=True)


@pytest.fixture
def client(sidecar: Sidecar) -> Iterator[Client]:
    with Client(sidecar.address, timeout_s=WAIT_S) as connected:
        yield connected


def log(sidecar: Sidecar) -> str:
    return (sidecar.folder / "sidecar.log").read_text()


def outcome(client: Client, texts: list[str]) -> type[EmbedError] | None:
    try:
        client.embed(texts)
    except EmbedError as error:
        return type(error)
    return None


def test_a_broken_device_fails_everyone_who_waits_and_serves_again_when_it_is_mended(sidecar: Sidecar, client: Client, fault: Path) -> None:
    assert client.health() == "SERVING"
    with ThreadPoolExecutor(8) as callers:
        waiting = [callers.submit(outcome, client, ["some words to be embedded"] * 256) for _ in range(8)]
        fault.write_text("error")
        assert eventually(lambda: client.health() == "NOT_SERVING")
        with pytest.raises(Unavailable, match="being rebuilt") as refused:
            client.embed(["too late"])
        assert refused.value.retry_after_s is not None
        outcomes = {caller.result(WAIT_S) for caller in waiting}
    assert EngineFailure in outcomes
    assert outcomes <= {EngineFailure, Unavailable, None}
    fault.unlink()
    assert eventually(lambda: client.health() == "SERVING")
    assert client.embed(["back again"]).shape == (1, 2048)
    assert sidecar.process is not None
    assert sidecar.process.poll() is None


@pytest.mark.slow
def test_a_device_that_stays_broken_ends_the_process_so_that_a_supervisor_starts_another(sidecar: Sidecar, client: Client, fault: Path) -> None:
    fault.write_text("error")
    assert outcome(client, ["some words"]) is EngineFailure
    assert sidecar.wait() == 1
    (line,) = [line for line in log(sidecar).splitlines() if line.startswith("nv_embed_sidecar: the engine")]
    assert "rebuilding it 5 times did not help" in line
    fault.unlink()
    sidecar.start()
    assert outcome(client, ["some words"]) is None


def test_a_device_that_hangs_ends_the_process_and_nobody_waits_for_ever(sidecar: Sidecar, client: Client, fault: Path) -> None:
    fault.write_text("hang")
    with ThreadPoolExecutor(4) as callers:
        waiting = [callers.submit(outcome, client, ["some words to be embedded"] * 256) for _ in range(4)]
        assert EngineFailure in {caller.result(WAIT_S) for caller in waiting}
    assert sidecar.wait() == 1
    assert "nv_embed_sidecar: the engine hangs" in log(sidecar)
    assert "fake.py" in log(sidecar), "where it hangs"


def test_memory_that_runs_short_makes_smaller_batches_and_the_same_vectors(sidecar: Sidecar, client: Client, fault: Path) -> None:
    texts = [f"text number {n}" for n in range(20)]
    before = client.embed(texts)
    fault.write_text("oom")
    numpy.testing.assert_array_equal(client.embed(texts), before)
    assert "out of memory" in log(sidecar)
    assert client.health() == "SERVING"


def test_a_process_that_was_stopped_for_long_does_not_take_its_device_to_hang(sidecar: Sidecar, client: Client) -> None:
    with ThreadPoolExecutor(1) as callers:
        computing = callers.submit(outcome, client, ["some words to be embedded"] * 5000)
        assert eventually(lambda: client.health() == "SERVING")
        sidecar.signal(signal.SIGSTOP)
        with Client(sidecar.address, timeout_s=3) as other, pytest.raises(DeadlineExceeded):
            other.embed(["while it stands still"])
        sidecar.signal(signal.SIGCONT)
        assert computing.result(WAIT_S) is None
    assert client.health() == "SERVING"


def test_a_broken_device_does_not_delay_the_end(sidecar: Sidecar, client: Client, fault: Path) -> None:
    fault.write_text("error")
    assert outcome(client, ["some words"]) is EngineFailure
    started = time.monotonic()
    sidecar.signal(signal.SIGTERM)
    assert sidecar.wait() == 0
    assert time.monotonic() - started < 10
