"""
A sidecar as a background process, begun and interrupted.
"""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest
from program import eventually
from servers import running_sidecar

from nv_embed.client import Client
from nv_embed.sidecar_process import Serving, SidecarProcess


@pytest.mark.parametrize("first_ms", [0.2, 2.2, 4.2, 6.2])
def test_ctrl_c_at_any_moment_of_the_start_leaves_no_process(tmp_path: Path, first_ms: float) -> None:
    for number in range(10):
        sidecar = SidecarProcess(tmp_path / f"{number}.json", tmp_path / "log")
        timer = threading.Timer((first_ms + 0.2 * number) / 1000, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            start(sidecar, timer)
        timer.join()
        # A process that was cloned and is not yet another program has our command line.
        assert not eventually(lambda place=sidecar: bool(place.processes()), 0.1)


def start(sidecar: SidecarProcess, interruption: threading.Timer) -> None:
    """Start both; on a busy machine the interruption may arrive while it is started itself."""
    interruption.start()
    sidecar.start("fake", ["127.0.0.1:0"])


@pytest.mark.parametrize("is_option", [True, False], ids=["option", "environment"])
def test_a_sidecar_that_was_told_to_drain_for_long_is_not_killed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_option: bool) -> None:
    monkeypatch.setattr("nv_embed.sidecar_process.STOP_TIMEOUT_S", 1)
    options = ["--http", "127.0.0.1:0", "--fake-delay-s", "4"]
    if is_option:
        options += ["--drain-s", "100"]
    else:
        monkeypatch.setenv("NV_EMBED_SIDECAR_DRAIN_S", "100")
    with running_sidecar(tmp_path, "--model", "fake", *options) as begun:
        sidecar = SidecarProcess(tmp_path / "sidecar.sock.json", tmp_path / "sidecar.log")
        serving = sidecar.serving()
        assert serving is not None
        assert serving.pid == begun.ready["pid"]
        with Client(begun.address) as client, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.embed, ["hello"])
            assert eventually(lambda: has_taken_a_text(serving))
            assert sidecar.stop()
            assert asked.result().shape == (1, 2048)


def has_taken_a_text(serving: Serving) -> bool:
    with urlopen(f"http://{serving.http[0]}/v1/metrics") as answer:
        return any(line.startswith(b"nv_embed_texts_total{") and not line.rstrip().endswith(b" 0.0") for line in answer)
