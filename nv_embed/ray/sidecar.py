"""
A sidecar of an actor's own.

The actor starts it beside itself, on the GPU that Ray has set aside for it, and talks to it by a unix socket. It ends with the actor, however that
dies.

In:  a model      Out: an endpoint
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nv_embed.sidecar_process import Serving, SidecarProcess


class OwnSidecar:
    """Starts at once, and again when it has died."""

    def __init__(self, model: str, options: Sequence[str] = ()) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nv_embed-ray-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self._process = SidecarProcess(folder / "ready.json", folder / "sidecar.log")
        self._model = model
        # Linux tells the sidecar to end when the thread that started it does, and Ray's may end before the actor.
        self._thread = ThreadPoolExecutor(1)
        self._options = options
        self.endpoint = f"unix:{folder / 'sidecar.sock'}"
        self._started = self._start()

    def revive(self) -> "Future[Serving]":
        """Start it, if it has died. Returns without waiting what is done when it serves.

        Raises:
            SidecarFailed: it did not start.
        """
        if self._started.done():
            self._started.result()
            if not self._process.processes():
                self._started = self._start()
        return self._started

    def _start(self) -> "Future[Serving]":
        return self._thread.submit(self._process.start, self._model, [self.endpoint], self._options, outlives=False)
