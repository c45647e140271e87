"""
The client against the real sidecar, and against servers that answer wrongly.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nv_embed.client import PAGE_BYTES, PAGE_TEXTS, Client, _cut
from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, Overloaded, Unavailable, UnknownModel
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderServicer, add_EmbedderServicer_to_server

Answer = Callable[[pb.EmbedRequest, grpc.ServicerContext], pb.EmbedResponse]


@contextmanager
def answering(answer: Answer | None) -> Iterator[Client]:
    """A client of a real gRPC server that answers as told, or does not know the service at all."""
    server = grpc.server(ThreadPoolExecutor(2))
    if answer is not None:
        servicer = EmbedderServicer()
        servicer.Embed = answer
        add_EmbedderServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        server.stop(0).wait()


def test_vectors_come_back_in_order_over_many_pages(client: Client) -> None:
    texts = [f"text {n}" for n in range(3 * PAGE_TEXTS + 1)]
    vectors = client.embed(texts, dim=384)
    assert vectors.shape == (len(texts), 384)
    for n in (0, PAGE_TEXTS - 1, PAGE_TEXTS, len(texts) - 1):
        assert numpy.array_equal(vectors[n], client.embed([texts[n]], dim=384)[0])


def test_no_texts_give_no_vectors(client: Client) -> None:
    assert client.embed([]).shape == (0, 0)
    assert client.embed([], dim=384).shape == (0, 384)


def test_any_iterable_will_do_but_not_a_single_string(client: Client) -> None:
    vectors = client.embed((f"text {n}" for n in range(3)), dim=384)
    assert vectors.shape == (3, 384)
    vectors *= 2
    with pytest.raises(TypeError, match="give a list"):
        client.embed("a string", dim=384)


def test_a_wrong_text_is_named_by_its_place_among_all(client: Client) -> None:
    texts = ["fine"] * PAGE_TEXTS + ["fine", "word " * 9000]
    with pytest.raises(InvalidInput) as raised:
        client.embed(texts)
    assert raised.value.position == PAGE_TEXTS + 1
    assert raised.value.hint


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ({"dim": 7}, InvalidInput, "384"),
        ({"dim": 0}, InvalidInput, "0 is not a number of dimensions"),
        ({"model": "gpt-9"}, UnknownModel, "gpt-9"),
        ({"revision": "another"}, UnknownModel, "another"),
        ({"input_type": "document"}, InvalidInput, "passage, query"),
        ({"truncate": "MIDDLE"}, InvalidInput, "NONE, START, END"),
    ],
)
def test_what_the_sidecar_refuses_is_the_tables_error(client: Client, arguments: dict[str, Any], kind: type[EmbedError], says: str) -> None:
    with pytest.raises(kind) as raised:
        client.embed(["x"], **arguments)
    assert says in str(raised.value)


def test_an_answer_of_the_wrong_size_is_never_used() -> None:
    def short(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        return pb.EmbedResponse(vectors=bytes(4 * 384), dim=384, model="m", revision="r")

    with answering(short) as client, pytest.raises(EngineFailure, match="1536 bytes for 2 texts at 384 dimensions"):
        client.embed(["a", "b"])


def test_a_model_that_changes_between_two_pages_fails_the_call() -> None:
    answered: list[int] = []

    def changing(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        answered.append(len(request.texts))
        return pb.EmbedResponse(vectors=bytes(8 * len(request.texts)), dim=2, model="m", revision=f"r{len(answered)}")

    with answering(changing) as client, pytest.raises(Unavailable, match="changed its model"):
        client.embed(["x"] * (PAGE_TEXTS + 1))


@pytest.mark.parametrize(("input_type", "priority"), [("query", pb.PRIORITY_INTERACTIVE), ("Passage", pb.PRIORITY_BULK)])
def test_questions_are_interactive_and_passages_bulk(input_type: str, priority: pb.Priority) -> None:
    found: list[pb.Priority] = []

    def noting(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        found.append(request.priority)
        return pb.EmbedResponse(vectors=bytes(8), dim=2, model="m", revision="r")

    with answering(noting) as client:
        client.embed(["x"], input_type=input_type)
    assert found == [priority]


def test_a_call_past_its_own_deadline_names_that() -> None:
    done = threading.Event()

    def late(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        done.wait(30)
        return pb.EmbedResponse()

    with answering(late) as client:
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.05 s"):
            client.embed(["x"], timeout_s=0.05)
        done.set()


def test_an_overloaded_sidecar_says_when_to_come_back() -> None:
    def full(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        context.set_trailing_metadata((("nv-embed-retry-after-s", "1.5"), ("nv-embed-hint-bin", "später".encode())))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        raise AssertionError

    with answering(full) as client, pytest.raises(Overloaded) as raised:
        client.embed(["x"])
    assert (raised.value.retry_after_s, raised.value.hint) == (1.5, "später")


def test_an_overlong_message_is_bad_input_and_not_an_overload() -> None:
    def refused(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max")
        raise AssertionError

    with answering(refused) as client, pytest.raises(InvalidInput):
        client.embed(["x"])


def test_a_server_without_the_service_is_said_to_be_another() -> None:
    with answering(None) as client, pytest.raises(Unavailable, match=r"does not speak nv_embed\.v1"):
        client.embed(["x"])


def test_a_server_that_raises_is_an_engine_failure() -> None:
    def raising(request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        raise ValueError("a bug")

    with answering(raising) as client, pytest.raises(EngineFailure):
        client.embed(["x"])


@given(st.lists(st.integers(0, PAGE_BYTES * 2), max_size=40).map(lambda sizes: ["x" * size for size in sizes]))
def test_pages_cover_all_texts_once_and_keep_to_the_limits(texts: Sequence[str]) -> None:
    pages = list(_cut(texts))
    assert [text for _, page in pages for text in page] == list(texts)
    for start, page in pages:
        assert texts[start] == page[0]
        assert 1 <= len(page) <= PAGE_TEXTS
        assert len(page) == 1 or sum(map(len, page)) <= PAGE_BYTES


def test_a_page_holds_a_limited_number_of_texts() -> None:
    assert [len(page) for _, page in _cut([""] * (2 * PAGE_TEXTS + 1))] == [PAGE_TEXTS, PAGE_TEXTS, 1]
