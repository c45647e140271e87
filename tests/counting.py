"""
A real gRPC server between a client and a sidecar, which counts what passes, and refuses what it is told to.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderServicer, EmbedderStub, add_EmbedderServicer_to_server

Refusal = tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]


@dataclass
class Counter(EmbedderServicer):
    """Passes calls on.

    Attributes:
        stub: the sidecar behind.
        refuse: called with each request's texts; returns a status, what it says and trailing metadata, or None to pass the call on.
        address: where to reach this server.
        pages: the texts of every `Embed` call so far.
        arrivals: for each text, when it came last, in seconds since 1970.
        refused: how many calls were refused.
    """

    stub: EmbedderStub
    refuse: Callable[[Sequence[str]], Refusal | None] = lambda _: None
    address: str = ""
    pages: list[list[str]] = field(default_factory=list)
    arrivals: dict[str, float] = field(default_factory=dict)
    refused: int = 0

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        self.pages.append(list(request.texts))
        self.arrivals.update(dict.fromkeys(request.texts, time.time()))
        refusal = self.refuse(request.texts)
        if refusal is not None:
            self.refused += 1
            context.set_trailing_metadata(refusal[2])
            context.abort(refusal[0], refusal[1])
        try:
            return self.stub.Embed(request)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata() or ())
            context.abort(error.code(), error.details())

    def Chunk(self, request: pb.ChunkRequest, context: grpc.ServicerContext) -> pb.ChunkResponse:
        return self.stub.Chunk(request)

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        return self.stub.ListModels(request)


@contextmanager
def counted(address: str, refuse: Callable[[Sequence[str]], Refusal | None] = lambda _: None) -> Iterator[Counter]:
    with grpc.insecure_channel(address) as channel:
        server = grpc.server(ThreadPoolExecutor(8))
        counter = Counter(EmbedderStub(channel), refuse)
        add_EmbedderServicer_to_server(counter, server)
        health = HealthServicer()
        health.set("", health_pb2.HealthCheckResponse.SERVING)
        add_HealthServicer_to_server(health, server)
        counter.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield counter
        finally:
            server.stop(0).wait()
