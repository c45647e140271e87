"""
Tokens, as callers of the real server meet them; and time, which a test can set.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.logs import OneLine
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.tokens import Bucket, Holder, Tokens
from program import eventually
from services import CountingEngine, connected, refused, serving, status

from nv_embed import tokens
from nv_embed.errors import Overloaded, Unauthenticated
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub
from nv_embed.tokens import Entry

SECRET = "Xylophonquark"
METHODS = {
    "Embed": pb.EmbedRequest(texts=["one"]),
    "Tokenize": pb.TokenizeRequest(texts=["one"]),
    "Chunk": pb.ChunkRequest(text="one", max_tokens=13),
    "ListModels": pb.ListModelsRequest(),
}


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@contextmanager
def guarded(file: Path, **settings: Any) -> Iterator[tuple[Server, EmbedderStub]]:
    with serving(settings.pop("engine", FakeEngine()), tokens=file, **settings) as server, connected(server) as stub:
        yield server, stub


@pytest.mark.parametrize("method", METHODS)
def test_every_call_needs_a_token_and_is_told_what_is_missing(file: Path, method: str) -> None:
    token = tokens.add(file, "app")
    with guarded(file) as (_, stub):
        call, request = getattr(stub, method), METHODS[method]
        for metadata, says in (
            ((), "a token is missing"),
            (bearer("nve_wrong"), "the token is not one of this sidecar's"),
            (bearer(""), "has no bearer token"),
            ((("authorization", f"Basic {token}"),), "has no bearer token"),
        ):
            code, message, trailing = refused(lambda metadata=metadata: call(request, metadata=metadata))  # type: ignore[misc]
            assert code == "UNAUTHENTICATED"
            assert says in message
            assert trailing["nv-embed-hint-bin"]
            assert token not in message + str(trailing)
        assert call(request, metadata=bearer(token))
        assert call(request, metadata=(("authorization", f"bearer  {token} "),))


def test_a_stream_needs_a_token_before_its_first_request(file: Path) -> None:
    token = tokens.add(file, "app")
    waits = threading.Event()

    def requests() -> Iterator[pb.EmbedRequest]:
        waits.wait(10)
        yield pb.EmbedRequest(texts=["one"])

    with guarded(file) as (_, stub):
        assert refused(lambda: next(stub.EmbedStream(requests(), timeout=5)))[0] == "UNAUTHENTICATED"
        waits.set()
        (answer,) = stub.EmbedStream(requests(), metadata=bearer(token))
        assert answer.dim == 2048


def test_health_answers_without_a_token_and_reflection_does_not(file: Path) -> None:
    token = tokens.add(file, "app")
    with guarded(file) as (server, _), grpc.insecure_channel(server.addresses[0]) as channel:
        assert status(server) == "SERVING"
        reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert refused(lambda: next(reflect(iter([request]))))[0] == "UNAUTHENTICATED"
        (answer,) = reflect(iter([request]), metadata=bearer(token))
        assert "nv_embed.v1.Embedder" in [service.name for service in answer.list_services_response.service]


def test_what_nobody_serves_is_not_told_without_a_token(file: Path) -> None:
    tokens.add(file, "app")
    with guarded(file) as (server, _), grpc.insecure_channel(server.addresses[0]) as channel:
        for method in ("/nv_embed.v1.Embedder/Other", "/grpc.health.v1.Healthy/Check", "/other.Service/Call"):
            assert refused(lambda method=method: channel.unary_unary(method)(b""))[0] == "UNAUTHENTICATED"  # type: ignore[misc]


def embeds(stub: EmbedderStub, token: str) -> bool:
    try:
        stub.Embed(pb.EmbedRequest(texts=["one"]), metadata=bearer(token))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED  # noqa: PT017 - anything else fails the test
        return False
    return True


def test_tokens_are_given_out_and_taken_back_while_it_serves(file: Path) -> None:
    first = tokens.add(file, "app")
    with guarded(file) as (_, stub):
        second = tokens.add(file, "app-2")
        assert eventually(lambda: embeds(stub, second))
        assert embeds(stub, first)
        tokens.remove(file, "app")
        assert eventually(lambda: not embeds(stub, first))
        assert embeds(stub, second)


def test_an_open_stream_ends_when_its_token_is_taken_back(file: Path) -> None:
    token = tokens.add(file, "app")
    go_on = threading.Semaphore(1)

    def requests() -> Iterator[pb.EmbedRequest]:
        while go_on.acquire(timeout=10):
            yield pb.EmbedRequest(texts=["one"])

    with guarded(file) as (_, stub):
        answers = stub.EmbedStream(requests(), metadata=bearer(token))
        next(answers)
        tokens.remove(file, "app")
        assert eventually(lambda: not embeds(stub, token))
        go_on.release()
        assert refused(lambda: next(answers))[0] == "UNAUTHENTICATED"


def test_a_file_that_is_broken_or_gone_changes_nothing_and_is_complained_of_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    token = tokens.add(file, "app")
    content = file.read_text()
    known = Tokens(file, clock)
    for break_it in (lambda: file.write_text("[app"), file.unlink):
        break_it()
        caplog.clear()
        for _ in range(3):
            clock.now += 2
            assert known.holder(f"Bearer {token}").name == "app"
        (record,) = caplog.records
        assert "the tokens that were known before stay" in record.getMessage()
    file.write_text(content.replace("[app]", "[web]"))
    file.chmod(0o600)
    clock.now += 2
    assert known.holder(f"Bearer {token}").name == "web"


def test_a_file_that_others_may_write_is_taken_once_that_is_mended(file: Path) -> None:
    clock = Clock()
    tokens.add(file, "app")
    known = Tokens(file, clock)
    file.chmod(0o666)
    token = _added_in_spite(file)
    clock.now += 2
    with pytest.raises(Unauthenticated):
        known.holder(f"Bearer {token}")
    file.chmod(0o600)
    clock.now += 2
    assert known.holder(f"Bearer {token}").name == "evil"


def _added_in_spite(file: Path) -> str:
    with file.open("a") as opened:
        opened.write(f'[evil]\nsha256 = "{tokens.hash_token("evil")}"\n')
    return "evil"


def test_the_file_is_looked_at_once_a_second_at_most(file: Path) -> None:
    clock = Clock()
    token = tokens.add(file, "app")
    known = Tokens(file, clock)
    tokens.remove(file, "app")
    clock.now += 0.9
    assert known.holder(f"Bearer {token}").name == "app"
    clock.now += 0.2
    with pytest.raises(Unauthenticated):
        known.holder(f"Bearer {token}")


def test_the_scheduler_is_fair_to_the_names_of_tokens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tokens.add(file, "app")
    with guarded(file) as (server, stub):
        served: list[str] = []
        submit = server.scheduler.submit
        monkeypatch.setattr(server.scheduler, "submit", lambda *args, client, **rest: served.append(client) or submit(*args, client=client, **rest))
        stub.Embed(pb.EmbedRequest(texts=["one"]), metadata=(*bearer(token), ("nv-embed-client", "another")))
        assert served == ["app"]


def test_requests_over_the_limit_are_refused_with_the_time_to_wait(file: Path) -> None:
    token = tokens.add(file, "app", requests_per_minute=2)
    other = tokens.add(file, "other")
    with guarded(file) as (_, stub):
        for _ in range(2):
            stub.ListModels(pb.ListModelsRequest(), metadata=bearer(token))
        code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=["one"]), metadata=bearer(token)))
        assert (code, message) == ("RESOURCE_EXHAUSTED", "app may send 2 requests a minute, and has")
        assert 25 < float(trailing["nv-embed-retry-after-s"]) <= 30
        assert embeds(stub, other)


def test_tokens_of_texts_over_the_limit_are_refused_before_they_are_queued(file: Path) -> None:
    token = tokens.add(file, "app", tokens_per_minute=10)
    engine = CountingEngine()
    with guarded(file, engine=engine) as (_, stub):
        engine.turnstile.put(None)
        assert sum(stub.Embed(pb.EmbedRequest(texts=["one two", "three"]), metadata=bearer(token)).tokens) == 9
        code, message, trailing = refused(lambda: stub.Embed(pb.EmbedRequest(texts=["four"]), metadata=bearer(token)))
        assert (code, message) == ("RESOURCE_EXHAUSTED", "app may send 10 tokens a minute, and has")
        assert 15 < float(trailing["nv-embed-retry-after-s"]) <= 18
        assert engine.texts.get() == 2
        assert engine.texts.empty()


def test_a_request_that_a_full_queue_refuses_costs_no_tokens(file: Path) -> None:
    token = tokens.add(file, "app", tokens_per_minute=100)
    thirty = pb.EmbedRequest(texts=["word " * 27])
    engine = CountingEngine()
    with guarded(file, engine=engine, max_queue_tokens=40) as (server, stub):
        computing = stub.Embed.future(thirty, metadata=bearer(token))
        assert engine.texts.get() == 1
        waiting = stub.Embed.future(thirty, metadata=bearer(token))
        assert eventually(lambda: server.scheduler.waiting_texts() == 1)
        for _ in range(5):
            code, message, _ = refused(lambda: stub.Embed(thirty, metadata=bearer(token)))
            assert (code, message) == ("RESOURCE_EXHAUSTED", "1 texts in 1 requests wait already")
        for _ in range(3):
            engine.turnstile.put(None)
        assert [list(answer.result().tokens) for answer in (computing, waiting)] == [[30], [30]]
        assert list(stub.Embed(thirty, metadata=bearer(token)).tokens) == [30]


def test_each_request_of_a_stream_counts(file: Path) -> None:
    token = tokens.add(file, "app", requests_per_minute=3)
    with guarded(file) as (_, stub):
        answers = stub.EmbedStream(iter([pb.EmbedRequest(texts=["one"])] * 5), metadata=bearer(token))
        assert [next(answers).dim for _ in range(3)] == [2048] * 3
        assert refused(lambda: next(answers))[0] == "RESOURCE_EXHAUSTED"


def test_a_bucket_fills_evenly_and_what_is_larger_passes_when_it_is_full_and_leaves_a_debt() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    assert bucket.take(50) == 0
    assert bucket.take(20) == pytest.approx(10)
    clock.now += 10
    assert bucket.take(20) == 0
    assert bucket.take(90) == pytest.approx(60)
    clock.now += 1000
    assert bucket.take(90) == 0
    assert bucket.take(1) == pytest.approx(31)
    clock.now += 31
    assert bucket.take(1) == 0


def test_threads_that_spend_at_once_spend_no_more_than_there_is() -> None:
    holder = Holder("app", Entry("", requests_per_minute=100), Clock())
    spent = []

    def spend() -> None:
        for _ in range(50):
            try:
                holder.spend_request()
            except Overloaded:
                continue
            spent.append(1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spent) == 100


def test_another_change_of_the_file_does_not_fill_the_buckets(file: Path) -> None:
    clock = Clock()
    token = tokens.add(file, "app", requests_per_minute=1)
    known = Tokens(file, clock)
    known.holder(f"Bearer {token}").spend_request()
    tokens.add(file, "other")
    clock.now += 2
    with pytest.raises(Overloaded):
        known.holder(f"Bearer {token}").spend_request()


def test_neither_tokens_nor_texts_are_in_the_log(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = tokens.add(file, "app", tokens_per_minute=10)
    with caplog.at_level(logging.DEBUG), guarded(file) as (_, stub):
        stub.Embed(pb.EmbedRequest(texts=[SECRET]), metadata=bearer(token))
        file.write_text("[app")
        for sent, text, dim in ((token, SECRET, 7), (f"{token}x", SECRET, 0), (token, f"{SECRET} " * 20, 0)):
            with pytest.raises(grpc.RpcError):
                stub.Embed(pb.EmbedRequest(texts=[text], dim=dim), metadata=bearer(sent))
    said = "\n".join(OneLine().format(record) for record in caplog.records)
    assert token not in said
    assert SECRET not in said


def test_tokens_over_an_open_address_without_tls_are_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens.add(file, "app")
    with serving(FakeEngine(), tokens=file, listen=("127.0.0.1:0", "[::1]:0")):
        assert "unencrypted" not in caplog.text
    with serving(FakeEngine(), tokens=file, listen=("0.0.0.0:0",)):
        assert "unencrypted" in caplog.text
