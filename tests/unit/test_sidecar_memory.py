"""
What calls leave in the real server's memory: nothing.

Python frees a thing with its last reference, except in cycles, which it looks for when it thinks that there are many; until then each would hold the
tokens and vectors of its request. So no call, however it ends, may leave one.
"""

import gc
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue

import numpy
import pytest
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.queues import Request
from program import eventually
from services import WAIT_S, CountingEngine, FailingEngine, connected, refused, serving

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub


@pytest.fixture
def before() -> Iterator[int]:
    """How many requests there are beforehand, those that a test of hanging engines left for instance. Nobody looks for cycles meanwhile."""
    gc.collect()
    gc.disable()
    yield requests_held()
    gc.enable()


def requests_held() -> int:
    return sum(type(thing) is Request for thing in gc.get_objects())


def embed(stub: EmbedderStub) -> None:
    stub.Embed(pb.EmbedRequest(texts=["one two"]), timeout=WAIT_S)


def stream(stub: EmbedderStub) -> None:
    list(stub.EmbedStream(iter([pb.EmbedRequest(texts=["one two"])] * 3), timeout=WAIT_S))


@pytest.mark.parametrize("call", [embed, stream])
def test_an_answered_call_leaves_nothing(before: int, call: Callable[[EmbedderStub], None]) -> None:
    with serving(FakeEngine()) as server, connected(server) as stub:
        for _ in range(10):
            call(stub)
        assert eventually(lambda: requests_held() == before)


@pytest.mark.parametrize("call", [embed, stream])
def test_a_failed_call_leaves_nothing(before: int, call: Callable[[EmbedderStub], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "nv_embed_sidecar")  # what pytest records of a failure holds its traceback
    with serving(FailingEngine(RuntimeError("no"))) as server, connected(server) as stub:
        for _ in range(10):
            assert refused(lambda: call(stub))[0] == "INTERNAL"
        assert eventually(lambda: requests_held() == before)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("give_up", ["cancel", "deadline"])
def test_a_call_that_was_given_up_leaves_nothing(before: int, give_up: str, streams: bool) -> None:
    engine = CountingEngine()
    with serving(engine, batch_tokens=5) as server, connected(server) as stub:
        computing = stub.Embed.future(pb.EmbedRequest(texts=["a b"]))
        assert engine.texts.get(timeout=WAIT_S) == 1
        request = pb.EmbedRequest(texts=["a b"] * 2)
        for _ in range(5):
            timeout = 0.2 if give_up == "deadline" else WAIT_S
            call = stub.EmbedStream(iter([request]), timeout=timeout) if streams else stub.Embed.future(request, timeout=timeout)
            assert eventually(lambda: server.scheduler.waiting_texts() == 2)
            if give_up == "cancel":
                call.cancel()
            assert eventually(lambda: server.scheduler.waiting_texts() == 0)
        engine.turnstile.put(None)
        assert computing.result(WAIT_S).dim == 2048
        assert eventually(lambda: requests_held() == before)


def test_an_open_stream_keeps_nothing_of_what_it_has_answered() -> None:
    with serving(FakeEngine()) as server, connected(server) as stub:
        requests: SimpleQueue[pb.EmbedRequest | None] = SimpleQueue()
        stream = stub.EmbedStream(iter(requests.get, None))
        for _ in range(50):
            requests.put(pb.EmbedRequest(texts=["one"]))
            assert next(stream).dim == 2048
        assert eventually(lambda: answered(2048) < 20), "of 50"
        requests.put(None)
        assert list(stream) == []


def answered(width: int) -> int:
    """Futures of vectors that something still holds."""
    gc.collect()
    done = [thing for thing in gc.get_objects() if issubclass(type(thing), Future) and thing.done() and not thing.cancelled()]
    return sum(numpy.shape(future.result()) == (1, width) for future in done if future.exception() is None)
