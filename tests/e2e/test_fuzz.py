"""
Requests that nobody would send, through each door: none makes the sidecar fail, crash or hang.

HTTP by schemathesis, which makes them from the sidecar's own description; gRPC by bytes that are no message, and by messages of random fields.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from servers import Sidecar, running_sidecar

from nv_embed.client import Client
from nv_embed.proto import nv_embed_pb2 as pb

pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = ("Embed", "Tokenize", "Chunk", "ListModels")
REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"}
EXAMPLES = settings(max_examples=200, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def sidecar(folder: Path) -> Iterator[Sidecar]:
    own = folder / "fuzz"
    own.mkdir()
    with running_sidecar(own, "--model", "fake", "--http", "127.0.0.1:0") as running:
        yield running
        assert running.process is not None
        assert running.process.poll() is None, "it is there still"
        assert "failed unexpectedly" not in (own / "sidecar.log").read_text()


def code(call: Callable[[], object]) -> str:
    """How a call ended. What gRPC itself says of bytes that are no message is INTERNAL."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_http_answers_everything_as_it_is_described(sidecar: Sidecar) -> None:
    description = schemathesis.openapi.from_url(f"http://{sidecar.ready['http'][0]}/openapi.json")
    operations = [found.ok() for found in description.get_all_operations()]
    assert len(operations) == 7

    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(EXAMPLES, max_examples=60)
        def is_answered(case: schemathesis.Case) -> None:
            case.call_and_validate(checks=[not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance])

        is_answered()


@given(body=st.binary(max_size=2000), kind=st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=x", "\x7f"]))
@EXAMPLES
def test_bodies_of_bytes_are_refused(sidecar: Sidecar, body: bytes, kind: str) -> None:
    answer = httpx.post(f"http://{sidecar.ready['http'][0]}/v1/embeddings", content=body, headers={"Content-Type": kind}, timeout=30)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]


@given(body=st.binary(max_size=500), method=st.sampled_from(METHODS))
@EXAMPLES
def test_bytes_that_are_no_message_are_refused_or_read(sidecar: Sidecar, body: bytes, method: str) -> None:
    with grpc.insecure_channel(sidecar.address) as channel:
        call = channel.unary_unary(f"/nv_embed.v1.Embedder/{method}")
        assert code(lambda: call(body, timeout=30)) in {"OK", "INTERNAL", *REFUSED}


NUMBERS = st.integers(-(2**31), 2**31 - 1)
REQUESTS = st.builds(
    pb.EmbedRequest,
    texts=st.lists(st.text(max_size=200), max_size=20),
    dim=st.sampled_from([0, 1, 384, 2048, 2**32 - 1]) | st.integers(0, 2**32 - 1),
    input_type=st.integers(0, 2) | NUMBERS,
    model=st.sampled_from(["", "fake", "FAKE"]) | st.text(max_size=50),
    revision=st.just("") | st.text(max_size=50),
    truncate=st.integers(0, 3) | NUMBERS,
    priority=st.integers(0, 2) | NUMBERS,
)


@given(request_=REQUESTS)
@EXAMPLES
def test_messages_of_random_fields_are_answered_or_refused(sidecar: Sidecar, request_: pb.EmbedRequest) -> None:
    with grpc.insecure_channel(sidecar.address) as channel:
        call = channel.unary_unary("/nv_embed.v1.Embedder/Embed", pb.EmbedRequest.SerializeToString, pb.EmbedResponse.FromString)
        assert code(lambda: call(request_, timeout=30)) in {"OK", *REFUSED}


@given(text=st.text(max_size=2000), max_tokens=NUMBERS, overlap=NUMBERS)
@EXAMPLES
def test_texts_are_cut_by_any_numbers_or_refused(sidecar: Sidecar, text: str, max_tokens: int, overlap: int) -> None:
    with grpc.insecure_channel(sidecar.address) as channel:
        call = channel.unary_unary("/nv_embed.v1.Embedder/Chunk", pb.ChunkRequest.SerializeToString, pb.ChunkResponse.FromString)
        request = pb.ChunkRequest(text=text, max_tokens=abs(max_tokens), overlap=abs(overlap))
        assert code(lambda: call(request, timeout=30)) in {"OK", *REFUSED}


def test_it_serves_still(sidecar: Sidecar) -> None:
    with Client(sidecar.address) as client:
        assert client.embed(["a"]).shape == (1, 2048)
