"""
`EmbedStream` by the real server: read ahead, in order, and ended with its caller.
"""

import threading
from queue import SimpleQueue

import grpc
import pytest
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.service import STREAM_REQUESTS
from program import eventually
from services import WAIT_S, CountingEngine, connected, refused, rows, serving

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub


def test_a_stream_answers_in_order_and_ends_with_the_first_error() -> None:
    texts = [["one"], [], ["two", "three"]]
    with serving(FakeEngine()) as server, connected(server) as stub:
        answers = list(stub.EmbedStream(iter([pb.EmbedRequest(texts=batch, dim=384) for batch in texts])))
        assert [len(rows(answer)) for answer in answers] == [1, 0, 2]
        assert answers[0].vectors == stub.Embed(pb.EmbedRequest(texts=["one"], dim=384)).vectors
        heard = stub.EmbedStream(iter([pb.EmbedRequest(texts=["one"]), pb.EmbedRequest(dim=5), pb.EmbedRequest(texts=["two"])]))
        assert next(heard).dim == 2048
        assert refused(lambda: next(heard))[0] == "INVALID_ARGUMENT"


def test_streams_are_limited_so_that_open_ones_cannot_hold_every_thread() -> None:
    with serving(FakeEngine(), rpc_threads=8) as server, connected(server) as stub:
        requests: SimpleQueue[pb.EmbedRequest | None] = SimpleQueue()
        requests.put(pb.EmbedRequest(texts=["one"]))
        first = stub.EmbedStream(iter(requests.get, None))
        assert next(first).dim == 2048
        code, _, trailing = refused(lambda: next(stub.EmbedStream(iter([pb.EmbedRequest(texts=["one"])]))))
        assert code == "RESOURCE_EXHAUSTED"
        assert trailing["nv-embed-retry-after-s"]
        requests.put(None)
        assert list(first) == []
        assert eventually(lambda: answers(stub))


def test_a_client_that_opens_as_many_streams_as_it_can_leaves_one_for_others() -> None:
    def open_one(client: str) -> None:
        asked: SimpleQueue[pb.EmbedRequest | None] = SimpleQueue()
        asked.put(pb.EmbedRequest(texts=["one"]))
        stream = stub.EmbedStream(iter(asked.get, None), metadata=(("nv-embed-client", client),))
        opened.append((stream, asked))
        next(stream)

    opened: list[tuple[object, SimpleQueue[pb.EmbedRequest | None]]] = []
    with serving(FakeEngine(), rpc_threads=32) as server, connected(server) as stub:
        for _ in range(3):
            open_one("eager")
        assert refused(lambda: open_one("eager"))[0] == "RESOURCE_EXHAUSTED"
        open_one("another")
        assert refused(lambda: open_one("third"))[0] == "RESOURCE_EXHAUSTED"
        for _, asked in opened:
            asked.put(None)


def answers(stub: EmbedderStub) -> bool:
    try:
        return next(stub.EmbedStream(iter([pb.EmbedRequest(texts=["one"])]))).dim == 2048
    except grpc.RpcError:
        return False


def test_a_stream_has_a_few_requests_under_way_and_answers_in_order() -> None:
    engine = CountingEngine()
    with serving(engine, batch_tokens=5) as server, connected(server) as stub:
        texts = [f"w{n} x" for n in range(10)]
        stream = stub.EmbedStream(iter([pb.EmbedRequest(texts=[text]) for text in texts]))
        assert engine.texts.get(timeout=WAIT_S) == 1
        assert eventually(lambda: server.scheduler.waiting_texts() == STREAM_REQUESTS - 1)
        vectors = []
        for _ in texts:
            engine.turnstile.put(None)
            vectors.append(next(stream).vectors)
            assert server.scheduler.waiting_texts() < STREAM_REQUESTS
        assert list(stream) == []
        for _ in range(2):
            engine.turnstile.put(None)
        assert vectors[::9] == [stub.Embed(pb.EmbedRequest(texts=[texts[n]])).vectors for n in (0, 9)]
        assert eventually(lambda: readers() == 0)


def readers() -> int:
    return sum(thread.name == "stream" for thread in threading.enumerate())


def test_a_stream_waits_for_its_own_requests_where_they_fill_the_queue() -> None:
    engine = CountingEngine()
    with serving(engine, max_queue_texts=5) as server, connected(server) as stub:
        for _ in range(20):
            engine.turnstile.put(None)
        answers = list(stub.EmbedStream(iter([pb.EmbedRequest(texts=["a b"] * 3) for _ in range(8)])))
        assert [len(rows(answer)) for answer in answers] == [3] * 8


@pytest.mark.parametrize("end", ["cancel", "error", "deadline"])
def test_a_stream_that_ends_early_gives_up_all_its_requests_and_leaves_no_thread(end: str) -> None:
    engine = CountingEngine()
    with serving(engine, batch_tokens=5) as server, connected(server) as stub:
        requests: SimpleQueue[pb.EmbedRequest | None] = SimpleQueue()
        for texts in (1, 10, 10):
            requests.put(pb.EmbedRequest(texts=["a b"] * texts))
        stream = stub.EmbedStream(iter(requests.get, None), timeout=1 if end == "deadline" else WAIT_S)
        assert engine.texts.get(timeout=WAIT_S) == 1
        assert eventually(lambda: server.scheduler.waiting_texts() == 20)
        if end == "cancel":
            stream.cancel()
        elif end == "error":
            requests.put(pb.EmbedRequest(dim=5))
            for _ in range(21):
                engine.turnstile.put(None)
            assert [len(rows(next(stream))) for _ in range(3)] == [1, 10, 10]
            assert refused(lambda: next(stream))[0] == "INVALID_ARGUMENT"
        assert eventually(lambda: server.scheduler.waiting_texts() == 0)
        assert eventually(lambda: readers() == 0)
        for _ in range(3):
            engine.turnstile.put(None)
        requests.put(None)
