"""
nv_embed.v1 as seen from the wire: what calls are answered, and how they are refused.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import pytest
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.logs import OneLine
from nv_embed_sidecar.tokenising import TextTokenizer
from program import eventually
from services import CountingEngine, FailingEngine, connected, refused, rows, serving, status

from nv_embed.client import Client
from nv_embed.errors import EngineFailure
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

SECRET = "Xylophonquark"


@pytest.fixture(scope="module")
def stub() -> Iterator[EmbedderStub]:
    with serving(FakeEngine(), max_request_texts=20, max_request_bytes=2000, max_text_bytes=1000) as server, connected(server) as stub:
        yield stub


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


def test_a_client_that_calls_as_often_as_it_can_leaves_places_for_others() -> None:
    def call(client: str) -> Any:
        return stub.Embed.future(pb.EmbedRequest(texts=["one two"]), metadata=(("nv-embed-client", client),))

    engine = CountingEngine()
    with serving(engine, rpc_threads=32, batch_tokens=5) as server, connected(server) as stub:
        eager = [call("eager") for _ in range(12)]
        try:
            assert eventually(lambda: sum(answer.done() for answer in eager) == 3)
            refusals = {answer.details().partition(":")[0] for answer in eager if answer.done()}
            assert refusals == {"too many calls of this client are under way"}
            others = [call("another"), call("third"), call("another")]
            assert eventually(lambda: server.scheduler.waiting_texts() == 12 - 1)
            code, said, _ = refused(call("fourth").result)
            assert (code, said.partition(":")[0]) == ("RESOURCE_EXHAUSTED", "too many calls are under way")
        finally:
            for _ in range(20):
                engine.turnstile.put(None)
        assert [len(rows(answer.result())) for answer in others] == [1, 1, 1]
        assert sum(answer.exception() is None for answer in eager) == 9
