"""
A sidecar as a background process, begun and interrupted.
"""

import os
import signal
import threading
from pathlib import Path

import pytest
from program import eventually

from nv_embed.sidecar_process import SidecarProcess


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
