"""
A gRPC server in front of a sidecar that passes every call on and keeps count.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderServicer, EmbedderStub, add_EmbedderServicer_to_server


@dataclass
class Counter(EmbedderServicer):
    """Attributes:
    stub: the sidecar behind.
    pages: the texts of each `Embed` call that was passed on.
    """

    stub: EmbedderStub
    address: str = ""
    pages: list[list[str]] = field(default_factory=list)

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        self.pages.append(list(request.texts))
        return self.stub.Embed(request)

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        return self.stub.ListModels(request)


@contextmanager
def counted(address: str) -> Iterator[Counter]:
    with grpc.insecure_channel(address) as channel:
        counter = Counter(EmbedderStub(channel))
        server = grpc.server(ThreadPoolExecutor(4))
        add_EmbedderServicer_to_server(counter, server)
        counter.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield counter
        finally:
            server.stop(0).wait()
