"""
nv_embed.v1 as seen from the wire, by the real server over engines that the test can follow.
"""

import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nv_embed_sidecar.engines import Engine, Vectors
from nv_embed_sidecar.engines.fake import FakeEngine, FakeVocabulary
from nv_embed_sidecar.logs import OneLine
from nv_embed_sidecar.models import Model, Models
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.service import STREAM_REQUESTS
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import TextTokenizer
from program import eventually

from nv_embed.client import Client
from nv_embed.errors import EngineFailure
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

WAIT_S = 10.0
SECRET = "Xylophonquark"


class FailingEngine(FakeEngine):
    """Raises what it is told to, once it is asked for a text of more than one token; forever after if it is broken."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.broken = False

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        if self.broken or len(batch[0]) > 1:
            raise self.error
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


@pytest.fixture(scope="module")
def stub() -> Iterator[EmbedderStub]:
    with serving(FakeEngine(), max_request_texts=20, max_request_bytes=2000, max_text_bytes=1000) as server, connected(server) as stub:
        yield stub


def refused(call: Callable[[], object]) -> tuple[str, str, dict[str, Any]]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code().name, raised.value.details(), dict(raised.value.trailing_metadata())


def rows(answer: pb.EmbedResponse) -> numpy.ndarray:
    return numpy.frombuffer(answer.vectors, dtype="<f4").reshape(-1, answer.dim)


def test_embed_answers_one_unit_vector_a_text_in_order(stub: EmbedderStub) -> None:
    texts = ["one two", "", "three", "one two"]
    answer = stub.Embed(pb.EmbedRequest(texts=texts))
    assert (answer.dim, answer.model, answer.revision, list(answer.tokens)) == (2048, "fake", "0123456789ab", [5, 3, 4, 5])
    numpy.testing.assert_allclose(numpy.linalg.norm(rows(answer), axis=1), 1, atol=1e-6)
    assert numpy.array_equal(rows(answer)[0], rows(answer)[3])
    assert numpy.array_equal(rows(answer)[2:3], rows(stub.Embed(pb.EmbedRequest(texts=["three"]))))


def test_a_smaller_dimension_is_the_prefix_at_unit_length(stub: EmbedderStub) -> None:
    whole, small = (rows(stub.Embed(pb.EmbedRequest(texts=["one two"], dim=dim)))[0] for dim in (0, 128))
    numpy.testing.assert_allclose(small, whole[:128] / numpy.linalg.norm(whole[:128]), rtol=1e-6)


def test_queries_and_passages_have_different_vectors_and_unspecified_means_passage(stub: EmbedderStub) -> None:
    unspecified, passage, query = (
        rows(stub.Embed(pb.EmbedRequest(texts=["one"], input_type=input_type)))
        for input_type in (pb.INPUT_TYPE_UNSPECIFIED, pb.INPUT_TYPE_PASSAGE, pb.INPUT_TYPE_QUERY)
    )
    assert numpy.array_equal(unspecified, passage)
    assert not numpy.array_equal(query, passage)


def test_no_texts_are_no_rows(stub: EmbedderStub) -> None:
    answer = stub.Embed(pb.EmbedRequest())
    assert (answer.dim, answer.vectors, answer.model) == (2048, b"", "fake")


def test_truncation_is_asked_for(stub: EmbedderStub) -> None:
    long = " ".join(f"w{n}" for n in range(100))
    for truncate, kept in ((pb.TRUNCATE_END, range(61)), (pb.TRUNCATE_START, range(39, 100))):
        answer = stub.Embed(pb.EmbedRequest(texts=[long], truncate=truncate))
        expected = stub.Embed(pb.EmbedRequest(texts=[" ".join(f"w{n}" for n in kept)]))
        assert list(answer.tokens) == [64]
        assert answer.vectors == expected.vectors
    code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=["short", long])))
    assert (code, message) == ("INVALID_ARGUMENT", "103 tokens exceed the 64 tokens that model fake reads")
    assert trailing["nv-embed-text"] == "1"
    assert b"nv_chunk()" in trailing["nv-embed-hint-bin"]


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (pb.EmbedRequest(texts=["a"], dim=129), "INVALID_ARGUMENT", "not trained for 129 dimensions"),
        (pb.EmbedRequest(dim=129), "INVALID_ARGUMENT", "not trained for 129 dimensions"),
        (pb.EmbedRequest(texts=["a"], model="other"), "NOT_FOUND", "model 'other' is not served here"),
        (pb.EmbedRequest(texts=["a"], model="x" * 20_000), "NOT_FOUND", "is not served here"),
        (pb.EmbedRequest(texts=["a"], revision="old"), "NOT_FOUND", "served at revision 0123456789ab, not old"),
        (pb.EmbedRequest(texts=["a"], input_type=7), "INVALID_ARGUMENT", "input_type 7 is unknown"),
        (pb.EmbedRequest(texts=["a"], truncate=7), "INVALID_ARGUMENT", "truncate 7 is unknown"),
        (pb.EmbedRequest(texts=["a"], priority=7), "INVALID_ARGUMENT", "priority 7 is unknown"),
        (pb.EmbedRequest(texts=["a"] * 21), "INVALID_ARGUMENT", "21 texts exceed the limit of 20 a request"),
        (pb.EmbedRequest(texts=["a", "é" * 501]), "INVALID_ARGUMENT", "1,002 bytes exceed the limit of 1,000 bytes a text"),
        (pb.EmbedRequest(texts=["é" * 499] * 3), "INVALID_ARGUMENT", "2,994 bytes exceed the limit of 2,000 bytes a request"),
    ],
)
def test_a_wrong_request_is_refused_with_what_was_wrong_and_what_to_do(
    stub: EmbedderStub, request_: pb.EmbedRequest, code: str, message: str
) -> None:
    said_code, said, trailing = refused(lambda: stub.Embed(request_))
    assert said_code == code
    assert message in said
    assert trailing["nv-embed-hint-bin"]
    assert "nv-embed-retry-after-s" not in trailing


def test_an_alias_and_the_expected_revision_are_answered_by_the_canonical_name(stub: EmbedderStub) -> None:
    assert stub.Embed(pb.EmbedRequest(texts=["a"], model="ALIAS", revision="0123456789ab")).model == "fake"


def test_a_stream_answers_in_order_and_ends_with_the_first_error(stub: EmbedderStub) -> None:
    texts = [["one"], [], ["two", "three"]]
    answers = list(stub.EmbedStream(iter([pb.EmbedRequest(texts=batch, dim=384) for batch in texts])))
    assert [len(rows(answer)) for answer in answers] == [1, 0, 2]
    assert answers[0].vectors == stub.Embed(pb.EmbedRequest(texts=["one"], dim=384)).vectors
    heard = stub.EmbedStream(iter([pb.EmbedRequest(texts=["one"]), pb.EmbedRequest(dim=5), pb.EmbedRequest(texts=["two"])]))
    assert next(heard).dim == 2048
    assert refused(lambda: next(heard))[0] == "INVALID_ARGUMENT"


def test_tokenize_counts_what_the_model_reads(stub: EmbedderStub) -> None:
    answer = stub.Tokenize(pb.TokenizeRequest(texts=["one two", "", "w " * 100], input_type=pb.INPUT_TYPE_QUERY))
    assert (list(answer.tokens), answer.model, answer.revision) == ([5, 3, 103], "fake", "0123456789ab")


def test_chunks_cover_the_text_in_characters(stub: EmbedderStub) -> None:
    text = "🙂 ünïcode words " * 20
    answer = stub.Chunk(pb.ChunkRequest(text=text, max_tokens=13))
    pieces = [text[chunk.start_char : chunk.end_char] for chunk in answer.chunks]
    assert "".join(pieces) == text
    assert list(stub.Tokenize(pb.TokenizeRequest(texts=pieces)).tokens) == [chunk.tokens for chunk in answer.chunks]
    assert not stub.Chunk(pb.ChunkRequest(text="  ", max_tokens=13)).chunks
    assert refused(lambda: stub.Chunk(pb.ChunkRequest(text="a", max_tokens=3)))[0] == "INVALID_ARGUMENT"
    assert refused(lambda: stub.Chunk(pb.ChunkRequest(text="a" * 1001, max_tokens=13)))[0] == "INVALID_ARGUMENT"


def test_list_models_says_everything_that_identifies_one(stub: EmbedderStub) -> None:
    (said,) = stub.ListModels(pb.ListModelsRequest()).models
    assert said == pb.Model(
        name="fake",
        revision="0123456789ab",
        native_dim=2048,
        trained_dims=[2048, 384],
        declared_dims=[128],
        max_tokens=64,
        pooling="mean",
        query_prompt="query: ",
        passage_prompt="passage: ",
        device="cpu",
        precision="fp32",
    )


def test_a_failing_engine_is_a_clean_status_and_neither_status_nor_log_holds_the_text(caplog: pytest.LogCaptureFixture) -> None:
    engine = FailingEngine(RuntimeError("out of memory"))
    with serving(engine) as server, connected(server) as stub, caplog.at_level(logging.DEBUG):
        code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=[SECRET])))
    assert (code, message) == ("INTERNAL", "the engine failed on a batch")
    assert b"log" in trailing["nv-embed-hint-bin"]
    assert "out of memory" in caplog.text
    assert SECRET not in caplog.text


def test_what_nobody_foresaw_is_a_clean_status_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: TextTokenizer, texts: Sequence[str], *rest: object) -> object:
        raise KeyError(texts[0])

    with serving(FakeEngine()) as server, connected(server) as stub:
        monkeypatch.setattr(TextTokenizer, "encode", broken)
        code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=[SECRET])))
    assert (code, message) == ("INTERNAL", "the sidecar failed")
    assert SECRET not in str(trailing)
    (line,) = [OneLine().format(record) for record in caplog.records if record.levelno >= logging.ERROR]
    assert "a call failed unexpectedly: KeyError | KeyError at service.py:" in line
    assert "\n" not in line
    assert SECRET not in line


def status(server: Server, service: str = "") -> str:
    with grpc.insecure_channel(server.addresses[0]) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


@pytest.mark.parametrize("service", ["", "nv_embed.v1.Embedder"])
def test_health_turns_when_the_engines_thread_dies(service: str) -> None:
    with serving(FailingEngine(SystemExit())) as server, Client(server.addresses[0]) as client:
        assert status(server, service) == "SERVING"
        with pytest.raises(EngineFailure):
            client.embed(["two words"])
        assert eventually(lambda: status(server, service) == "NOT_SERVING")
        with pytest.raises(EngineFailure, match="the engine has stopped"):
            client.embed(["two words"])


def test_health_turns_while_the_engine_can_compute_nothing() -> None:
    engine = FailingEngine(RuntimeError("the device is gone"))
    with serving(engine) as server, Client(server.addresses[0]) as client:
        with pytest.raises(EngineFailure):
            client.embed(["two words"])
        assert status(server) == "SERVING", "one bad batch is not a dead device"
        engine.broken = True
        with pytest.raises(EngineFailure):
            client.embed(["two words"])
        assert eventually(lambda: status(server) == "NOT_SERVING")
        engine.broken = False
        assert eventually(lambda: status(server) == "SERVING")


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
        assert engine.texts.get(timeout=WAIT_S)
        assert eventually(lambda: server.scheduler.waiting_texts() > 30)
        waiting = server.scheduler.waiting_texts()
        single = other.Embed.future(pb.EmbedRequest(texts=["a b"]), metadata=names[1])
        assert eventually(lambda: server.scheduler.waiting_texts() == waiting + 1)
        for _ in range(2):
            engine.turnstile.put(None)
        assert len(rows(single.result(WAIT_S))) == 1
        assert sum(call.done() for call in many) <= 1
        for _ in range(40):
            engine.turnstile.put(None)
        assert all(len(rows(call.result(WAIT_S))) == 4 for call in many)
