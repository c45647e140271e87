"""
The real gRPC server in this process, over engines that a test can follow.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
import numpy
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nv_embed_sidecar.engines import Engine, Vectors
from nv_embed_sidecar.engines.fake import FakeEngine, FakeVocabulary
from nv_embed_sidecar.models import Model, Models
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import TextTokenizer

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

WAIT_S = 10.0


class FailingEngine(FakeEngine):
    """Raises what it is told to, once it is asked for a text of more than one token; forever after if it is broken."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.broken = False

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        if self.broken or len(batch[0]) > 1:
            raise type(self.error)(*self.error.args)  # a new one each time: an error keeps every frame that it came through
        return super().encode(batch)


class CountingEngine(FakeEngine):
    """Keeps the sizes of its batches, and waits for the test before each."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: SimpleQueue[int] = SimpleQueue()
        self.turnstile: SimpleQueue[None] = SimpleQueue()

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        self.texts.put(len(batch))
        self.turnstile.get(timeout=WAIT_S)
        return super().encode(batch)


def model(engine: Engine, name: str = "fake", max_tokens: int = 64) -> Model:
    tokenizer = TextTokenizer(FakeVocabulary(), model=name, max_tokens=max_tokens, query_prompt="query: ", passage_prompt="passage: ")
    return Model(name, ("alias",), "0123456789ab", (2048, 384), (128,), "mean", tokenizer, engine)


@contextmanager
def serving(engine: Engine, **settings: Any) -> Iterator[Server]:
    server = Server(Models([model(engine)]), Settings(**{"listen": ("127.0.0.1:0",), "drain_s": 5, **settings}))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connected(server: Server) -> Iterator[EmbedderStub]:
    with grpc.insecure_channel(server.addresses[0]) as channel:
        yield EmbedderStub(channel)


def refused(call: Callable[[], object]) -> tuple[str, str, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code().name, raised.value.details(), dict(raised.value.trailing_metadata())


def rows(answer: pb.EmbedResponse) -> numpy.ndarray:
    return numpy.frombuffer(answer.vectors, dtype="<f4").reshape(-1, answer.dim)


def status(server: Server, service: str = "") -> str:
    with grpc.insecure_channel(server.addresses[0]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
