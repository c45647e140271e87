"""
/v1/embeddings as seen from the wire: what is answered, and how it is refused.
"""

import json
import logging
import os
import socket
import ssl
import struct
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
from authority import Authority
from nv_embed_sidecar.engines.fake import FakeEngine
from nv_embed_sidecar.http import listener
from nv_embed_sidecar.http.app import Bounds
from nv_embed_sidecar.logs import OneLine
from nv_embed_sidecar.server import Server
from nv_embed_sidecar.tokenising import TextTokenizer
from program import eventually
from services import CountingEngine, FailingEngine, connected, rows, serving

from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

SECRET = "Xylophonquark"
OVER_HTTP = {"http": ("127.0.0.1:0",)}


def url(server: Server) -> str:
    return f"http://{server.http_addresses[0]}"


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with serving(FakeEngine(), max_request_texts=20, max_request_bytes=20_000, max_text_bytes=1000, **OVER_HTTP) as server:
        yield server


@pytest.fixture(scope="module")
def http(served: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url(served), timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def stub(served: Server) -> Iterator[EmbedderStub]:
    with connected(served) as stub:
        yield stub


def embed(http: httpx.Client, **said: Any) -> httpx.Response:
    return http.post("/v1/embeddings", json=said)


def vectors(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    items = answer.json()["data"]
    assert [item["index"] for item in items] == list(range(len(items)))
    return numpy.array([item["embedding"] for item in items])


def test_the_vectors_are_those_of_grpc_to_the_last_bit(http: httpx.Client, stub: EmbedderStub) -> None:
    texts = ["one two", "", "three", "🙂 ünïcode"]
    for dim in (0, 384, 128):
        for input_type, number in (("query", pb.INPUT_TYPE_QUERY), ("passage", pb.INPUT_TYPE_PASSAGE)):
            answer = embed(http, input=texts, input_type=input_type, **({"dimensions": dim} if dim else {}))
            expected = stub.Embed(pb.EmbedRequest(texts=texts, dim=dim, input_type=number))
            assert numpy.array_equal(vectors(answer).astype(numpy.float32), rows(expected))
            assert answer.json()["usage"] == {"prompt_tokens": sum(expected.tokens), "total_tokens": sum(expected.tokens)}
            assert (answer.json()["model"], answer.headers["nv-embed-revision"]) == ("fake", "0123456789ab")


def test_one_text_needs_no_list_and_no_input_type_means_passage(http: httpx.Client) -> None:
    assert numpy.array_equal(vectors(embed(http, input="one", model="fake")), vectors(embed(http, input=["one"], input_type="passage")))


@pytest.mark.parametrize(("suffix", "input_type"), [("-query", "query"), ("-passage", "passage")])
def test_a_suffix_of_the_models_name_says_the_input_type(http: httpx.Client, suffix: str, input_type: str) -> None:
    expected = vectors(embed(http, input="one", input_type=input_type))
    assert numpy.array_equal(vectors(embed(http, input="one", model=f"fake{suffix}")), expected)
    assert numpy.array_equal(vectors(embed(http, input="one", model=f"ALIAS{suffix}", input_type=input_type)), expected)


def test_base64_is_the_same_numbers(http: httpx.Client) -> None:
    plain = embed(http, input=["one", "two"])
    packed = embed(http, input=["one", "two"], encoding_format="base64")
    for number, item in zip(plain.json()["data"], packed.json()["data"], strict=True):
        assert numpy.array_equal(numpy.frombuffer(b64decode(item["embedding"]), "<f4"), numpy.float32(number["embedding"]))


@pytest.mark.parametrize("dim", [2048, 384])
def test_smaller_types_keep_the_angles_and_depend_on_no_other_text(http: httpx.Client, dim: int) -> None:
    texts = ["a grey cat", "a grey cat sleeps", "winter wheat"]
    exact = vectors(embed(http, input=texts, dimensions=dim))
    int8, uint8, binary, ubinary = (
        vectors(embed(http, input=texts, dimensions=dim, embedding_type=kind)) for kind in ("int8", "uint8", "binary", "ubinary")
    )
    assert numpy.abs(int8).max(axis=1).tolist() == [127, 127, 127]
    unit = int8 / numpy.linalg.norm(int8, axis=1, keepdims=True)
    numpy.testing.assert_allclose(unit @ unit.T, exact @ exact.T, atol=2e-2)
    assert numpy.array_equal(uint8, int8 + 128)
    assert ubinary.shape == (3, dim // 8)
    assert numpy.array_equal(numpy.unpackbits(ubinary.astype(numpy.uint8), axis=1), exact > 0)
    assert numpy.array_equal(binary, ubinary - 128)
    alone = vectors(embed(http, input=texts[1], dimensions=dim, embedding_type="int8"))
    assert numpy.array_equal(alone[0], int8[1])


def test_smaller_types_in_base64_are_their_bytes(http: httpx.Client) -> None:
    for kind, dtype in (("int8", numpy.int8), ("uint8", numpy.uint8), ("binary", numpy.int8), ("ubinary", numpy.uint8)):
        expected = vectors(embed(http, input="one", embedding_type=kind))[0]
        (item,) = embed(http, input="one", embedding_type=kind, encoding_format="base64").json()["data"]
        assert numpy.array_equal(numpy.frombuffer(b64decode(item["embedding"]), dtype), expected)


def test_many_vectors_come_in_pieces_and_in_order(http: httpx.Client) -> None:
    texts = [f"text number {number}" for number in range(20)]
    whole = vectors(embed(http, input=texts))
    assert whole.shape == (20, 2048)
    with serving(FakeEngine(), **OVER_HTTP) as server, httpx.Client(base_url=url(server), timeout=60) as http:
        many = vectors(embed(http, input=texts * 40))
    assert numpy.array_equal(many, numpy.tile(whole, (40, 1)))


def test_token_ids_stand_for_their_text(http: httpx.Client, served: Server) -> None:
    vocabulary = served.intake.models.find("fake").tokenizer._vocabulary
    for input_type in ("query", "passage"):
        expected = vectors(embed(http, input=["one two", "three"], input_type=input_type))
        ids = vocabulary.ids(["one two", "three"])
        assert numpy.array_equal(vectors(embed(http, input=ids, input_type=input_type)), expected)
        assert numpy.array_equal(vectors(embed(http, input=ids[0], input_type=input_type)), expected[:1])
    wrong = embed(http, input=[[1], [1, 1 << 60]])
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input")
    assert "input[1]: token id 1152921504606846976 is not one of" in wrong.json()["error"]["message"]


def test_truncation_is_asked_for_and_said_in_each_clients_words(http: httpx.Client) -> None:
    long = " ".join(f"w{n}" for n in range(100))
    kept = " ".join(f"w{n}" for n in range(39, 100))
    assert numpy.array_equal(vectors(embed(http, input=long, truncate="START")), vectors(embed(http, input=kept)))
    nim = embed(http, input=["short", long], truncate="NONE")
    assert nim.status_code == 400
    assert nim.json()["error"] == "input[1]: Input length 103 exceeds maximum allowed token size 64"
    assert embed(http, input=long, input_type="query").json()["error"] == "Input length 103 exceeds maximum allowed token size 64"
    openai = embed(http, input=["short", long])
    assert openai.status_code == 400
    said = openai.json()["error"]
    assert (said["type"], said["param"], said["code"]) == ("invalid_request_error", "input", "context_length_exceeded")
    assert said["message"].startswith("input[1]: 103 tokens exceed the 64 tokens that model fake reads (")


@pytest.mark.parametrize(
    ("said", "status", "message", "param"),
    [
        ({"input": "a", "dimensions": 129}, 400, "not trained for 129 dimensions", None),
        ({"input": "a", "model": "other"}, 404, "model 'other' is not served here", None),
        ({"input": "a", "model": "other-query"}, 404, "is not served here", None),
        ({"input": ["a"] * 21}, 400, "21 texts exceed the limit of 20 a request", None),
        ({"input": ["a", "é" * 501]}, 400, "input[1]: 1,002 bytes exceed the limit of 1,000 bytes a text", "input"),
        ({"input": ["é" * 501, "a"]}, 400, "input[0]: 1,002 bytes exceed the limit of 1,000 bytes a text", "input"),
        ({"input": []}, 422, "input is neither text nor token ids", "input"),
        ({"input": [[]]}, 422, "input is neither text nor token ids", "input"),
        ({"input": ["a", 1]}, 422, "input is neither text nor token ids", "input"),
        ({"input": [-1]}, 422, "input is neither text nor token ids", "input"),
        ({"input": None}, 422, "input is neither text nor token ids", "input"),
        ({"input": {"text": SECRET}}, 422, "input is neither text nor token ids", "input"),
        ({"model": "fake"}, 422, "input is neither text nor token ids", "input"),
        ({"input": "a", "dimensions": 0}, 422, "dimensions: input should be greater than or equal to 1", "dimensions"),
        ({"input": "a", "dimensions": "384"}, 422, "dimensions: ", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 422, "encoding_format: input should be 'float' or 'base64'", "encoding_format"),
        ({"input": "a", "dimension": 384}, 422, "there is no field 'dimension'", "dimension"),
        ([1], 422, "should be", None),
    ],
)
def test_a_wrong_request_is_refused_with_what_was_wrong_and_what_to_do(
    http: httpx.Client, said: Any, status: int, message: str, param: str | None
) -> None:
    answer = http.post("/v1/embeddings", json=said)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert SECRET not in answer.text
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"input": "\xff"}', b'{"input": "\\ud800"}', b"[" * 100_000, b'{"input": ' + b"9" * 10_000 + b"}", b"\x00"]
)
def test_what_is_no_json_is_said_to_be_none(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/v1/embeddings", content=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"]


def test_a_field_of_nims_gets_nims_shape_of_errors(http: httpx.Client) -> None:
    answer = embed(http, input="a", model="other", input_type="query")
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("model 'other' is not served here")
    assert "fake" in answer.json()["detail"]
    both = embed(http, input="a", model="fake-query", input_type="passage")
    assert (both.status_code, both.json()) == (
        400,
        {"error": "the model's name says query, and input_type passage", "detail": "leave one of them out"},
    )


def test_models_metadata_health_and_the_description_are_there(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["fake"])
    assert http.get("/v1/models/alias").json() == listed["data"][0]
    assert (listed["data"][0]["dimensions"], listed["data"][0]["max_tokens"]) == ([2048, 384, 128], 64)
    assert http.get("/v1/models/other").status_code == 404
    assert http.get("/v1/health/ready").json() == {"object": "health.response", "message": "ready", "ready": True}
    assert http.get("/v1/health/live").json() == {"object": "health.response", "message": "live", "live": True}
    assert http.get("/v1/metadata").json()["modelInfo"][0]["shortName"] == "fake:0123456789ab"
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/embeddings", "/v1/models", "/v1/models/{name}", "/v1/health/live", "/v1/health/ready", "/v1/metadata", "/v1/metrics"}
    for path, method, status in (("/v1/nothing", "GET", 404), ("/v1/embeddings", "GET", 405), ("/v1/models", "DELETE", 405)):
        answer = http.request(method, path)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")


def test_a_full_queue_is_429_with_when_to_come_back() -> None:
    engine = CountingEngine()
    served = serving(engine, max_queue_texts=16, **OVER_HTTP)
    with served as server, httpx.Client(base_url=url(server), timeout=30) as http, ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(embed, http, input=["a"] * 4) for _ in range(8)]
        assert eventually(lambda: any(call.done() for call in waiting))
        refused = next(call.result() for call in waiting if call.done())
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert int(refused.headers["retry-after-ms"]) >= 1
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        for _ in range(40):
            engine.turnstile.put(None)
        assert {call.result().status_code for call in waiting} == {200, 429}


def test_a_failing_engine_is_500_and_neither_answer_nor_log_holds_the_text(caplog: pytest.LogCaptureFixture) -> None:
    engine = FailingEngine(RuntimeError("out of memory"))
    with serving(engine, **OVER_HTTP) as server, httpx.Client(base_url=url(server)) as http, caplog.at_level(logging.DEBUG):
        answer = embed(http, input=SECRET)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert answer.json()["error"]["message"].startswith("the engine failed on a batch")
        engine.broken = True
        embed(http, input=SECRET)
        assert eventually(lambda: http.get("/v1/health/ready").status_code == 503)
        assert http.get("/v1/health/ready").json() == {"object": "health.response", "message": "not ready", "ready": False}
    assert SECRET not in caplog.text


def test_what_nobody_foresaw_is_a_clean_500_and_a_line_without_the_text(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: TextTokenizer, texts: Sequence[str], *rest: object) -> object:
        raise KeyError(texts[0])

    with serving(FakeEngine(), **OVER_HTTP) as server, httpx.Client(base_url=url(server)) as http:
        monkeypatch.setattr(TextTokenizer, "encode", broken)
        answer = embed(http, input=SECRET)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the sidecar failed (try again; the sidecar's log says what happened)")
    lines = [OneLine().format(record) for record in caplog.records if record.name == "nv_embed_sidecar.http.guard"]
    assert len(lines) == 1
    assert "KeyError" in lines[0]
    assert SECRET not in lines[0]


def test_a_caller_that_hangs_up_costs_no_batch() -> None:
    engine = CountingEngine()
    with serving(engine, **OVER_HTTP) as server, httpx.Client(base_url=url(server)) as http:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(embed, http, input="a")
            assert engine.texts.get(timeout=10) == 1
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url(server)}/v1/embeddings", json={"input": ["b"] * 7}, timeout=0.5)
            assert eventually(lambda: not server.scheduler.waiting_texts())
            engine.turnstile.put(None)
            assert first.result().status_code == 200
        engine.turnstile.put(None)
        assert embed(http, input="c").status_code == 200
        assert engine.texts.get(timeout=10) == 1, "the seven texts were not computed"


def test_requests_under_way_are_answered_when_the_server_stops_and_no_new_ones_taken() -> None:
    engine = CountingEngine()
    with ThreadPoolExecutor(2) as pool, serving(engine, **OVER_HTTP) as server:
        call = pool.submit(httpx.post, f"{url(server)}/v1/embeddings", json={"input": "a"}, timeout=30)
        assert engine.texts.get(timeout=10) == 1
        stopping = pool.submit(server.stop)
        assert eventually(lambda: _refuses(server))
        engine.turnstile.put(None)
        assert call.result().status_code == 200
        stopping.result(20)


def _refuses(server: Server) -> bool:
    try:
        httpx.get(f"{url(server)}/v1/health/ready", timeout=5)
    except httpx.HTTPError:
        return True
    return False


def connection(server: Server) -> socket.socket:
    host, port = server.http_addresses[0].split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def heading(**headers: object) -> bytes:
    said = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"POST /v1/embeddings HTTP/1.1\r\nHost: here\r\n{said}\r\n".encode()


def answered(opened: socket.socket) -> bytes:
    """A short answer, headers and body."""
    whole = b""
    while not whole.endswith(b"}"):
        piece = opened.recv(65536)
        assert piece, whole
        whole += piece
    return whole


def is_closed(opened: socket.socket) -> bool:
    try:
        return opened.recv(65536) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def is_held(opened: socket.socket) -> bool:
    """Whether this process, where the server is, has the other end of a connection. Its peer cannot see that as long as it takes nothing."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(entry.readlink()).startswith("socket:"):
                with socket.socket(fileno=os.dup(int(entry.name))) as found:
                    if found.getpeername() == opened.getsockname():
                        return True
    return False


def test_an_answer_waits_for_no_acknowledgement(served: Server, http: httpx.Client) -> None:
    assert embed(http, input="a").status_code == 200
    (listening,) = served._http
    for connected_ in list(listening._server.server_state.connections):
        assert connected_.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: Server) -> None:
    with connection(served) as opened:
        opened.sendall(heading(Content_Length=100_000_000))
        answer = answered(opened)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"the body exceeds the limit of 16,777,216 bytes" in answer


def test_a_body_that_does_not_say_its_size_is_refused_at_the_limit(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(400):
            yield b" " * 65536

    try:
        answer = http.post("/v1/embeddings", content=endless())
    except httpx.WriteError:  # it hung up in the middle of the body
        return
    assert answer.status_code == 413


def test_a_million_texts_are_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/embeddings", content=json.dumps({"input": ["a"] * 1_000_000}))
    assert answer.status_code == 400
    assert "1000000 texts exceed the limit of 20 a request" in answer.json()["error"]["message"]


def test_bodies_have_a_bound_together_and_each_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nv_embed_sidecar.server.Bounds", lambda: Bounds(body_bytes=1000, bodies_bytes=1500, body_s=1.0))
    with serving(FakeEngine(), **OVER_HTTP) as server, connection(server) as slow, httpx.Client(base_url=url(server)) as http:
        slow.sendall(heading(Content_Length=900) + b"{")
        assert eventually(lambda: http.post("/v1/embeddings", content=json.dumps({"input": "a" * 700})).status_code == 429)
        assert embed(http, input="small").status_code == 200
        answer = answered(slow)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come within 1 s" in answer
        assert http.post("/v1/embeddings", content=json.dumps({"input": "a" * 700})).status_code == 200


def test_a_body_in_chunks_takes_the_room_of_the_largest_whatever_length_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nv_embed_sidecar.server.Bounds", lambda: Bounds(body_bytes=1000, bodies_bytes=1500))
    with serving(FakeEngine(), **OVER_HTTP) as server, connection(server) as slow, httpx.Client(base_url=url(server)) as http:
        slow.sendall(heading(Content_Length=0, Transfer_Encoding="chunked") + b"1\r\n{\r\n")
        assert eventually(lambda: http.post("/v1/embeddings", content=json.dumps({"input": "a" * 700})).status_code == 429)


def test_a_request_for_more_than_all_the_room_there_is_gets_in_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nv_embed_sidecar.server.Bounds", lambda: Bounds(vectors_bytes=100 * 2048 * 4))
    with serving(FakeEngine(), **OVER_HTTP) as server, httpx.Client(base_url=url(server), timeout=30) as http:
        assert len(vectors(embed(http, input=["a"] * 200))) == 200


def test_answers_that_nobody_takes_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nv_embed_sidecar.server.Bounds", lambda: Bounds(vectors_bytes=1000 * 2048 * 4))
    monkeypatch.setattr(listener, "SEND_S", 2.0)
    with serving(FakeEngine(), **OVER_HTTP) as server, connection(server) as deaf, httpx.Client(base_url=url(server)) as http:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps({"input": ["a"] * 900}).encode()
        deaf.sendall(heading(Content_Length=len(body)) + body)
        assert eventually(lambda: embed(http, input=["a"] * 200).status_code == 429)
        assert embed(http, input=["a"] * 50).status_code == 200
        assert eventually(lambda: embed(http, input=["a"] * 200).status_code == 200), "it was let go"


def deaf_connection(server: Server) -> socket.socket:
    """One whose answers wait in the server from the first kilobytes on."""
    (listening,) = server._http
    assert eventually(lambda: listening._server.started)
    for accepting in listening._server.servers[0].sockets:
        accepting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    opened = socket.socket()
    opened.settimeout(20)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = server.http_addresses[0].split(":")
    opened.connect((host, int(port)))
    return opened


def test_connections_that_say_nothing_are_closed_and_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEADERS_S", 2.0)
    monkeypatch.setattr(listener.Connection, "most", 20)
    with serving(FakeEngine(), **OVER_HTTP) as server, httpx.Client(base_url=url(server)) as http:
        silent = [connection(server) for _ in range(60)]
        for number, opened in enumerate(silent):
            if number % 2:
                opened.sendall(b"POST /v1/embeddings HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        assert embed(http, input="a").status_code == 200
        assert time.monotonic() - began < 1.5, "nobody waits for those that are silent"
        assert all(is_closed(opened) for opened in silent)
        assert embed(http, input="a").status_code == 200
        for opened in silent:
            opened.close()


def test_headers_without_an_end_are_refused(served: Server) -> None:
    with connection(served) as opened:
        try:
            for _ in range(64):
                opened.sendall(b"X-Long: " + b"x" * 4000 + b"\r\n")
        except OSError:
            return
        assert b"400" in opened.recv(65536)[:20]


@pytest.mark.parametrize(
    ("texts", "headers"),
    [(600, {}), (32, {}), (32, {"Connection": "close"})],
    ids=["of many pieces", "of one piece", "of one piece, after which the connection ends"],
)
@pytest.mark.parametrize("by_tls", [False, True])
def test_one_that_does_not_take_its_answer_is_let_go_while_it_still_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, texts: int, headers: dict[str, str], by_tls: bool
) -> None:
    monkeypatch.setattr(listener, "SEND_S", 1.0)
    monkeypatch.setattr(listener, "KEEP_ALIVE_S", 3.0 if by_tls else 75.0)  # TLS takes a piece whole, and what it still has is known to nobody
    settings: dict[str, Any] = {**OVER_HTTP, **(encrypted(tmp_path) if by_tls else {})}
    with serving(FakeEngine(), **settings) as server, deaf_connection(server) as plain, trusting(plain, tmp_path) if by_tls else plain as opened:
        assert eventually(lambda: is_held(opened))
        body = json.dumps({"input": [f"text {number}" for number in range(texts)]}).encode()
        opened.sendall(heading(Content_Length=len(body), **headers) + body)
        assert eventually(lambda: not is_held(opened), timeout_s=20)
        assert by_tls or "did not take its answer" in caplog.text
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def encrypted(folder: Path) -> dict[str, Path]:
    pair = Authority(folder).issue("server")
    return {"tls_cert": pair.certificate, "tls_key": pair.key}


def trusting(opened: socket.socket, folder: Path) -> ssl.SSLSocket:
    return ssl.create_default_context(cafile=str(folder / "authority.pem")).wrap_socket(opened, server_hostname="localhost")


def test_those_that_do_not_take_their_answers_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener.Connection, "most", 4)
    body = json.dumps({"input": ["a"] * 32}).encode()
    with serving(FakeEngine(), **OVER_HTTP) as server, ExitStack() as opened:
        deaf = [opened.enter_context(deaf_connection(server)) for _ in range(4)]
        for one in deaf:
            one.sendall(heading(Content_Length=len(body)) + body)
            assert one.recv(1) == b"H", "its answer is there, and it takes no more of it"
        for number in range(1, 5):
            http = opened.enter_context(httpx.Client(base_url=url(server), timeout=30))
            assert embed(http, input="a").status_code == 200
            assert eventually(lambda number=number: sum(map(is_held, deaf)) == 4 - number), "one goes for each that comes"


def test_those_that_say_nothing_before_tls_keep_nobody_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listener, "HEADERS_S", 1000.0)
    monkeypatch.setattr(listener.Connection, "most", 20)
    with serving(FakeEngine(), **encrypted(tmp_path), **OVER_HTTP) as server, ExitStack() as opened:
        silent = [opened.enter_context(connection(server)) for _ in range(60)]
        with trusting(connection(server), tmp_path) as spoken:
            spoken.sendall(b"GET /v1/health/live HTTP/1.1\r\nHost: here\r\n\r\n")
            assert answered(spoken).startswith(b"HTTP/1.1 200 ")
        assert all(is_closed(one) for one in silent[:40])
        assert eventually(lambda: sum(map(is_held, silent)) == 20 - 1)


def test_tls_has_no_more_time_to_begin_than_headers_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listener, "HEADERS_S", 1.0)
    with serving(FakeEngine(), **encrypted(tmp_path), **OVER_HTTP) as server, connection(server) as silent:
        assert is_closed(silent)
