"""
How many calls are under way, whose turn it is, and that who gives up costs nothing: by the real server.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from nv_embed_sidecar.server import Server
from program import eventually
from services import WAIT_S, CountingEngine, connected, refused, rows, serving, status

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub


def test_an_overload_is_answered_at_once_with_the_time_to_come_back() -> None:
    engine = CountingEngine()
    with serving(engine, max_queue_texts=5, batch_tokens=8) as server, connected(server) as stub:
        computing = stub.Embed.future(pb.EmbedRequest(texts=["a b"]))
        assert engine.texts.get(timeout=WAIT_S) == 1
        waiting = stub.Embed.future(pb.EmbedRequest(texts=["a b"] * 5))
        assert eventually(lambda: server.scheduler.waiting_texts() == 5)
        code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=["a b"]), timeout=WAIT_S))
        assert code == "RESOURCE_EXHAUSTED"
        assert "wait already" in message
        assert float(trailing["nv-embed-retry-after-s"]) > 0
        for _ in range(20):
            engine.turnstile.put(None)
        assert len(rows(computing.result(WAIT_S))) == 1
        assert len(rows(waiting.result(WAIT_S))) == 5


@pytest.mark.parametrize("give_up", ["cancel", "deadline"])
def test_a_call_that_is_given_up_is_never_computed(give_up: str) -> None:
    engine = CountingEngine()
    with serving(engine) as server, connected(server) as stub:
        computing = stub.Embed.future(pb.EmbedRequest(texts=["a b"]))
        assert engine.texts.get(timeout=WAIT_S) == 1
        abandoned = stub.Embed.future(pb.EmbedRequest(texts=["a b"] * 2), timeout=1 if give_up == "deadline" else WAIT_S)
        assert eventually(lambda: server.scheduler.waiting_texts() == 2)
        if give_up == "cancel":
            abandoned.cancel()
        else:
            with pytest.raises(grpc.RpcError):
                abandoned.result(WAIT_S)
            assert abandoned.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        last = stub.Embed.future(pb.EmbedRequest(texts=["a b"] * 3))
        assert eventually(lambda: server.scheduler.waiting_texts() == 3)
        for _ in range(3):
            engine.turnstile.put(None)
        assert len(rows(last.result(WAIT_S))) == 3
        assert len(rows(computing.result(WAIT_S))) == 1
        assert engine.texts.get(timeout=WAIT_S) == 3
        assert engine.texts.empty()


def test_bulk_callers_leave_threads_for_queries_and_health() -> None:
    engine = CountingEngine()
    with serving(engine, rpc_threads=8, batch_tokens=5) as server, connected(server) as stub:
        bulk = [stub.Embed.future(pb.EmbedRequest(texts=["a b"])) for _ in range(20)]
        assert eventually(lambda: server.scheduler.waiting_texts() == 2)
        assert eventually(lambda: sum(call.done() for call in bulk) == 17)
        assert status(server) == "SERVING"
        query = stub.Embed.future(pb.EmbedRequest(texts=["a b"], priority=pb.PRIORITY_INTERACTIVE))
        assert eventually(lambda: server.scheduler.waiting_texts() == 3)
        for _ in range(20):
            engine.turnstile.put(None)
        assert len(rows(query.result(WAIT_S))) == 1
        outcomes = [call.code() for call in bulk]
        assert outcomes.count(grpc.StatusCode.OK) == 3
        assert outcomes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 17


@contextmanager
def connection_of_its_own(server: Server) -> Iterator[EmbedderStub]:
    """Channels of one process to one address share a connection unless told not to."""
    with grpc.insecure_channel(server.addresses[0], options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield EmbedderStub(channel)


@pytest.mark.parametrize("by", ["connection", "name"])
def test_a_client_with_many_requests_does_not_hold_up_another(by: str, tmp_path: Path) -> None:
    engine = CountingEngine()
    listen = ("127.0.0.1:0",) if by == "connection" else (f"unix:{tmp_path}/s",)
    with (
        serving(engine, batch_tokens=10, listen=listen) as server,
        connection_of_its_own(server) as one,
        connection_of_its_own(server) as other,
    ):
        names = [[("nv-embed-client", name)] if by == "name" else None for name in ("one", "other")]
        many = [one.Embed.future(pb.EmbedRequest(texts=["a b"] * 4), metadata=names[0]) for _ in range(10)]
        waiting = 40 - engine.texts.get(timeout=WAIT_S)
        assert eventually(lambda: server.scheduler.waiting_texts() == waiting)
        single = other.Embed.future(pb.EmbedRequest(texts=["a b"]), metadata=names[1])
        assert eventually(lambda: server.scheduler.waiting_texts() == waiting + 1)
        for _ in range(2):
            engine.turnstile.put(None)
        assert len(rows(single.result(WAIT_S))) == 1
        assert sum(call.done() for call in many) <= 1
        for _ in range(40):
            engine.turnstile.put(None)
        assert all(len(rows(call.result(WAIT_S))) == 4 for call in many)
