"""
The health service, with clients that watch and go, and the check of the container image.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.server import Server
from program import eventually
from services import serving

CHECK = Path(__file__).resolve().parents[2] / "docker" / "sidecar-health"
SERVICE = "nv_embed.v1.Embedder"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
    health_pb2.HealthCheckResponse.SERVICE_UNKNOWN,
)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(FakeEngine()) as server:
        yield server


def watch(channel: grpc.Channel, service: str = SERVICE) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))


def test_a_watcher_is_told_the_status_and_each_change_and_the_end(server: Server) -> None:
    with grpc.insecure_channel(server.addresses[0]) as channel:
        said, whole, unknown = watch(channel), watch(channel, ""), watch(channel, "other")
        assert [next(said).status, next(whole).status, next(unknown).status] == [SERVING, SERVING, SERVICE_UNKNOWN]
        server._set_health(False)
        assert [next(said).status, next(whole).status] == [NOT_SERVING, NOT_SERVING]
        server._set_health(True)
        assert next(said).status == SERVING
        server.stop()
        assert [message.status for message in said] == [NOT_SERVING]


def test_a_service_that_is_not_served_is_not_found(server: Server) -> None:
    with grpc.insecure_channel(server.addresses[0]) as channel, pytest.raises(grpc.RpcError) as raised:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="other"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_watchers_that_come_and_go_while_the_status_changes_do_not_stop_the_sidecar() -> None:
    with serving(FakeEngine(), drain_s=2) as server:
        over = threading.Event()
        seen: list[int] = []

        def come_and_go() -> None:
            while not over.is_set():
                with grpc.insecure_channel(server.addresses[0], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                    said = watch(channel)
                    seen.append(next(said).status)

        watchers = [threading.Thread(target=come_and_go, daemon=True) for _ in range(8)]
        for watcher in watchers:
            watcher.start()
        for number in range(300):
            server._set_health(bool(number % 2))
        over.set()
        for watcher in watchers:
            watcher.join(20)
        assert not any(watcher.is_alive() for watcher in watchers)
        assert seen
        ended = threading.Thread(target=server.stop, daemon=True)
        ended.start()
        ended.join(20)
        assert not ended.is_alive()
        assert eventually(lambda: not server._health._watchers)


def test_the_images_check_tells_a_sidecar_that_takes_no_requests_from_one_that_is_gone(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"

    def exit_statuses() -> list[int]:
        command, environment = [sys.executable, CHECK], {**os.environ, "NV_EMBED_SIDECAR_READY_FILE": str(ready)}
        return [
            subprocess.run([*command, *arguments], env=environment, capture_output=True, check=False).returncode for arguments in ([], ["--live"])
        ]

    assert exit_statuses() == [1, 1]
    with serving(FakeEngine(), listen=("127.0.0.1:0", f"unix:{tmp_path}/sidecar.sock")) as server:
        ready.write_text(json.dumps({"addresses": server.addresses}))
        assert exit_statuses() == [0, 0]
        server._set_health(False)
        assert exit_statuses() == [1, 0]
    assert exit_statuses() == [1, 1]
