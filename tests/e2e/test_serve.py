"""
The sidecar as a process: addresses, readiness, health, load, and its end.
"""

import json
import os
import pwd
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from nv_embed_sidecar.settings import Settings, option
from program import eventually
from servers import shared_folder

from nv_embed.client import Client
from nv_embed.errors import DeadlineExceeded, EmbedError, InvalidInput, Overloaded, Unavailable
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

WAIT_S = 60


@dataclass
class Serving:
    """A sidecar process.

    Attributes:
        addresses: as its ready file names them.
        line: what it said on stdout when it was ready.
    """

    process: "subprocess.Popen[str]"
    addresses: list[str]
    line: str
    log: Path

    def client(self) -> Client:
        return Client(self.addresses[0], timeout_s=WAIT_S)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        return self.process.wait(WAIT_S)


def launch(*arguments: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "nv_embed_sidecar", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
    )


def outcome(*arguments: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a sidecar that does not come to serve."""
    with launch(*arguments, **env) as process:
        try:
            _, said = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    return process.returncode, said


@contextmanager
def serving(folder: Path, *arguments: str, listen: tuple[str, ...] = ("127.0.0.1:0",)) -> Iterator[Serving]:
    ready, log = folder / "ready.json", folder / "log"
    listens = [part for address in listen for part in ("--listen", address)]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "nv_embed_sidecar", "--model", "fake", *listens, "--ready-file", str(ready), *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        said = json.loads(ready.read_text())
        assert said["pid"] == process.pid
        yield Serving(process, said["addresses"], line, log)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


@pytest.fixture(scope="module")
def sidecar(folder: Path) -> Iterator[Serving]:
    """One for the tests that leave it as it was."""
    with serving(folder, listen=("127.0.0.1:0", f"unix:{folder}/module.sock")) as running:
        yield running


@pytest.fixture
def own_folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


def test_it_says_what_it_serves_and_where(sidecar: Serving) -> None:
    tcp, unix = sidecar.addresses
    assert tcp.startswith("127.0.0.1:")
    assert int(tcp.rpartition(":")[2]) > 0
    assert sidecar.line == f"nv_embed_sidecar: serving fake on {tcp}, {unix}\n"


def test_every_address_answers_with_the_same_vectors(sidecar: Serving) -> None:
    answers = []
    for address in sidecar.addresses:
        with Client(address) as client:
            answers.append(client.embed(["who built the first dynamo?"], dim=384).tolist())
    assert answers[0] == answers[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_of_the_machine_can_connect_to_the_unix_socket(sidecar: Serving) -> None:
    path = sidecar.addresses[1].removeprefix("unix:")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o666
    nobody = pwd.getpwnam("nobody")
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({path!r})"
    done = subprocess.run(["/usr/bin/env", "python3", "-c", code], user=nobody.pw_uid, group=nobody.pw_gid, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_it_may_open_as_many_files_as_the_system_lets_it(own_folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    try:
        with serving(own_folder) as sidecar:
            assert resource.prlimit(sidecar.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def peak_bytes(sidecar: Serving) -> int:
    """The most memory that it has had."""
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{sidecar.process.pid}/status").read_text(), re.MULTILINE)
    return int(kib) * 1024


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"input": [' + b",".join([b"{}"] * 350_000) + b"]}", "input is neither text nor token ids"),
        (b'{"input": [[' + b",".join([b"-1"] * 350_000) + b"]]}", "input is neither text nor token ids"),
        (b'{"input": "a"' + b"".join(b',"%d":0' % number for number in range(1_000_000)) + b"}", "there is no field '0'"),
    ],
    ids=["items of no kind", "ids of no kind", "unknown fields"],
)
def test_a_request_that_is_wrong_in_a_million_places_costs_little_more_than_its_size(own_folder: Path, body: bytes, message: str) -> None:
    with serving(own_folder, "--http", "127.0.0.1:0") as sidecar:
        (address,) = json.loads((own_folder / "ready.json").read_text())["http"]
        with httpx.Client(base_url=f"http://{address}", timeout=WAIT_S) as http:
            assert http.post("/v1/embeddings", json={"input": "a"}).status_code == 200
            before = peak_bytes(sidecar)
            answer = http.post("/v1/embeddings", content=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["message"].startswith(message)
        assert peak_bytes(sidecar) - before < 100_000_000 + 20 * len(body)


def test_health_is_serving(sidecar: Serving) -> None:
    with grpc.insecure_channel(sidecar.addresses[0]) as channel:
        for service in ("", "nv_embed.v1.Embedder"):
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_describes_the_service(sidecar: Serving) -> None:
    with grpc.insecure_channel(sidecar.addresses[0]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"nv_embed.v1.Embedder", "grpc.health.v1.Health"} <= set(database.get_services())
        service = DescriptorPool(database).FindServiceByName("nv_embed.v1.Embedder")
        assert [method.name for method in service.methods] == ["Embed", "EmbedStream", "Tokenize", "Chunk", "ListModels"]


def test_a_message_over_grpcs_limit_is_one_readable_error(sidecar: Serving) -> None:
    request = pb.EmbedRequest(texts=["x" * 20 * 1024 * 1024])
    with grpc.insecure_channel(sidecar.addresses[0]) as channel, pytest.raises(grpc.RpcError) as raised:
        EmbedderStub(channel).Embed(request, timeout=WAIT_S)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with sidecar.client() as client:
        assert client.embed(["still there"]).shape == (1, 2048)


def test_a_second_sidecar_on_the_same_port_or_socket_fails_in_one_line(sidecar: Serving) -> None:
    for address in sidecar.addresses:
        code, said = outcome("--model", "fake", "--listen", address)
        assert code == 1
        (line,) = [line for line in said.splitlines() if line.startswith("nv_embed_sidecar:")]
        assert line.startswith(f"nv_embed_sidecar: cannot listen on {address}")
        assert "Traceback" not in said
    for address in sidecar.addresses:
        with Client(address) as client:
            assert client.embed(["still there"]).shape == (1, 2048)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "nosuch"], 1, "there is no model 'nosuch'"),
        (["--model", "nosuch/model"], 1, "model 'nosuch/model' is not on this machine"),
        (["--model", "fake", "--dims", "4096"], 1, "--dims 4096 is wider than the model's 2048"),
        (["--model", "fake", "--model", "fake"], 1, "two models are called fake"),
        (["--model", "fake", "--listen", "nowhere"], 1, "'nowhere' is not an address"),
        (["--model", "fake", "--listen", "unix:/no/such/folder/s.sock"], 1, "cannot listen on unix:/no/such/folder/s.sock"),
        (["--model", "fake", "--listen", "127.0.0.1:0", "--ready-file", "/no/such/folder/ready"], 1, "cannot write /no/such/folder/ready"),
        (["--device", "tpu"], 2, "--device"),
        (["--precision", "fp16"], 2, "--precision"),
        (["--pooling", "max"], 2, "--pooling"),
        (["--max-tokens", "0"], 2, "--max-tokens"),
        (["--model", "fake", "--model", "minilm", "--query-prompt", ""], 2, "--query-prompt is said of one model, and there are 2"),
        (["--model", "fake", "--max-tokens", "3"], 1, "max_tokens is 3, and special tokens and query prompt of model fake alone take 3"),
        (["--model", "fake", "--bidirectional"], 1, "the fake model has mean pooling and no attention"),
        (["--threads", "0"], 2, "--threads"),
        (["--max-request-bytes", "16777217"], 2, "--max-request-bytes: Input should be less than or equal to 16777216"),
        (["--max-text-bytes", "16777217"], 2, "--max-text-bytes: Input should be less than or equal to 16777216"),
        (["--dims", "x"], 2, "--dims"),
        (["--nosuch"], 2, "--nosuch"),
    ],
)
def test_what_cannot_work_ends_with_one_line_that_says_why(arguments: list[str], code: int, message: str) -> None:
    ended, said = outcome(*arguments)
    assert ended == code, said
    assert message in said
    assert "Traceback" not in said
    if code == 1:
        assert len([line for line in said.splitlines() if line.startswith("nv_embed_sidecar: ")]) == 1


def test_settings_come_from_the_environment_too_and_the_command_line_wins(own_folder: Path) -> None:
    ready = own_folder / "ready.json"
    process = launch(
        "--dims",
        "64",
        NV_EMBED_SIDECAR_MODELS="fake",
        NV_EMBED_SIDECAR_DIMS="32",
        NV_EMBED_SIDECAR_LISTEN="127.0.0.1:0,localhost:0",
        NV_EMBED_SIDECAR_READY_FILE=str(ready),
    )
    try:
        assert eventually(ready.exists, WAIT_S)
        said = json.loads(ready.read_text())
        assert len(said["addresses"]) == 2
        assert said["models"] == ["fake"]
        with Client(said["addresses"][1]) as client:
            assert list(client.list_models()[0].declared_dims) == [64]
    finally:
        process.kill()
        process.communicate()


def test_what_the_operator_says_of_a_model_is_what_it_does_and_what_it_reports(own_folder: Path) -> None:
    arguments = ("--query-prompt", "ask: ", "--passage-prompt", "", "--max-tokens", "9", "--dims", "100")
    with serving(own_folder, *arguments) as running, running.client() as client:
        (model,) = client.list_models()
        assert (model.query_prompt, model.passage_prompt, model.max_tokens) == ("ask: ", "", 9)
        assert (list(model.trained_dims), list(model.declared_dims)) == ([2048, 1024, 768, 512, 384], [100])
        assert client.count_tokens(["one two"], input_type="query") == [5]
        assert client.count_tokens(["one two"]) == [3]
        alike = client.embed(["ask: one two", "one two"], dim=100, input_type="query")
        assert alike[0].tolist() == alike[1].tolist(), "a prompt is not doubled"
        with pytest.raises(InvalidInput, match="11 tokens exceed the 9"):
            client.embed(["one two three four five six seven eight nine ten"])
        changed = model.revision
    with serving(own_folder) as running, running.client() as client:
        assert client.list_models()[0].revision != changed


def test_what_is_said_of_a_model_may_stand_in_the_environment(own_folder: Path) -> None:
    ready = own_folder / "ready.json"
    said = {"MODELS": "fake", "LISTEN": "127.0.0.1:0", "READY_FILE": str(ready), "QUERY_PROMPT": "ask: ", "PASSAGE_PROMPT": "", "MAX_TOKENS": "9"}
    process = launch(**{f"NV_EMBED_SIDECAR_{name}": value for name, value in said.items()})
    try:
        assert eventually(ready.exists, WAIT_S)
        with Client(json.loads(ready.read_text())["addresses"][0]) as client:
            (model,) = client.list_models()
        assert (model.query_prompt, model.passage_prompt, model.max_tokens) == ("ask: ", "", 9)
    finally:
        process.kill()
        process.communicate()


def test_a_causal_model_is_refused_in_one_line_that_says_how_to_go_on(own_folder: Path) -> None:
    (own_folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (own_folder / "tokenizer.json").write_text("{}")
    code, said = outcome("--model", str(own_folder))
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("nv_embed_sidecar: ")]
    assert "is a causal llama" in line
    assert "--bidirectional" in line


def test_help_says_every_setting(own_folder: Path) -> None:
    said = subprocess.run([sys.executable, "-m", "nv_embed_sidecar", "--help"], capture_output=True, text=True, check=True).stdout
    options = set(re.findall(r"^  (--[a-z-]+)", said, re.MULTILINE)) - {"--help"}
    assert options == {"--model" if name == "models" else option(name) for name in Settings.model_fields}


def test_a_stale_socket_file_is_replaced(own_folder: Path) -> None:
    path = own_folder / "s.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.is_socket()
    with serving(own_folder, listen=(f"unix:{path}",)) as running, running.client() as client:
        assert client.embed(["there"]).shape == (1, 2048)


def test_a_file_that_is_no_socket_is_left_alone(own_folder: Path) -> None:
    path = own_folder / "precious"
    path.write_text("data")
    code, said = outcome("--model", "fake", "--listen", f"unix:{path}")
    assert code == 1, said
    assert path.read_text() == "data"


def test_sigterm_lets_the_call_under_way_finish_and_refuses_new_ones(own_folder: Path) -> None:
    with serving(own_folder, "--fake-delay-s", "2", "--drain-s", "30") as running, Watch(running.addresses[0]) as watch:
        assert watch.next() == "SERVING"
        with grpc.insecure_channel(running.addresses[0]) as channel:
            under_way = begin(channel, pb.EmbedRequest(texts=["a text"]))
            running.terminate()
            assert watch.next() == "NOT_SERVING"
            with running.client() as late, pytest.raises(Unavailable):
                late.embed(["too late"])
            assert not under_way.done(), "the new call was refused while the old one was under way"
            assert len(under_way.result(WAIT_S).vectors) == 4 * 2048
        ended = time.monotonic()
        assert running.exit_code() == 0
        assert time.monotonic() - ended < 10, "the open health stream does not hold it up"


def test_a_drain_ends_when_its_time_is_up(own_folder: Path) -> None:
    with serving(own_folder, "--fake-delay-s", "1", "--batch-tokens", "1", "--drain-s", "0.5") as running:
        with grpc.insecure_channel(running.addresses[0]) as channel:
            hopeless = begin(channel, pb.EmbedRequest(texts=["a text"] * 100))
            running.terminate()
            with pytest.raises(grpc.RpcError):
                hopeless.result(WAIT_S)
        assert running.exit_code() == 0


def test_a_second_signal_ends_it_at_once(own_folder: Path) -> None:
    with serving(own_folder, "--fake-delay-s", "60", "--drain-s", "60") as running, Watch(running.addresses[0]) as watch:
        assert watch.next() == "SERVING"
        with grpc.insecure_channel(running.addresses[0]) as channel:
            begin(channel, pb.EmbedRequest(texts=["a text"]))
            running.terminate()
            assert watch.next() == "NOT_SERVING"
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(10) == 128 + signal.SIGINT


def begin(channel: grpc.Channel, request: pb.EmbedRequest) -> "grpc.Future[pb.EmbedResponse]":
    """A call that the server has received: a connection's calls arrive in order, and a later one has been answered."""
    call = EmbedderStub(channel).Embed.future(request, timeout=WAIT_S)
    EmbedderStub(channel).ListModels(pb.ListModelsRequest(), timeout=WAIT_S)
    return call


class Watch:
    """The health service's stream of changes."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._stream = health_pb2_grpc.HealthStub(self._channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def next(self) -> str:
        return health_pb2.HealthCheckResponse.ServingStatus.Name(next(self._stream).status)


def test_a_call_past_its_deadline_ends_in_time_and_costs_nothing(own_folder: Path) -> None:
    with serving(own_folder, "--fake-delay-s", "1") as running, running.client() as client, grpc.insecure_channel(running.addresses[0]) as channel:
        busy = begin(channel, pb.EmbedRequest(texts=["a text"]))
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            client.embed(["never computed"] * 200, timeout_s=0.2)
        assert time.monotonic() - started < 1
        assert len(busy.result(WAIT_S).vectors) == 4 * 2048
        started = time.monotonic()
        client.embed(["the next"])
        assert time.monotonic() - started < 1.9, "one batch of its own, and none for the call that was given up"


def test_an_overloaded_sidecar_says_at_once_when_to_come_back(own_folder: Path) -> None:
    with (
        serving(own_folder, "--fake-delay-s", "1", "--max-queue-texts", "10", "--batch-tokens", "8") as running,
        running.client() as client,
        grpc.insecure_channel(running.addresses[0]) as channel,
    ):
        waiting = [begin(channel, pb.EmbedRequest(texts=["a text"] * 5)) for _ in range(2)]
        assert eventually(lambda: is_overloaded(client))
        started = time.monotonic()
        with pytest.raises(Overloaded) as raised:
            client.embed(["one more"] * 6)
        assert time.monotonic() - started < 0.5
        assert raised.value.retry_after_s is not None
        with Client(running.addresses[0], timeout_s=WAIT_S) as other:
            (page,) = other.embed_pages(["a query"], input_type="query")
            assert page.count == 1, "queries have a queue of their own"
        for call in waiting:
            call.cancel()


def is_overloaded(client: Client) -> bool:
    try:
        client.embed(["one more"] * 10, timeout_s=0.1)
    except EmbedError as error:
        return isinstance(error, Overloaded)
    return False


def test_a_query_passes_the_bulk_work(own_folder: Path) -> None:
    delay_s = 0.3
    arguments = ("--fake-delay-s", str(delay_s), "--batch-tokens", "50")
    with serving(own_folder, *arguments) as running, running.client() as client, grpc.insecure_channel(running.addresses[0]) as channel:
        bulk = begin(channel, pb.EmbedRequest(texts=["some words to be embedded"] * 500))
        waits = []
        for _ in range(5):
            started = time.monotonic()
            list(client.embed_pages(["a query"], input_type="query"))
            waits.append(time.monotonic() - started)
        assert not bulk.done()
        bulk.cancel()
    # Of a query's own work, and of the one batch that it waits for, the scheduler's tests tell; the bulk request takes 80 batches.
    assert max(waits) < 20 * delay_s


def test_many_callers_at_once_get_their_own_answers(sidecar: Serving) -> None:
    with sidecar.client() as client, ThreadPoolExecutor(32) as threads:
        texts = [[f"text {caller} {n}" for n in range(caller % 5)] for caller in range(100)]
        answers = list(threads.map(lambda batch: client.embed(batch, dim=384), texts))
        for batch, vectors in zip(texts, answers, strict=True):
            for text, vector in zip(batch, vectors, strict=True):
                assert vector.tolist() == client.embed([text], dim=384)[0].tolist()


def test_logs_hold_no_texts(own_folder: Path) -> None:
    with serving(own_folder) as running, running.client() as client:
        client.embed(["Xylophonquark"])
        with pytest.raises(EmbedError):
            client.embed(["Xylophonquark " * 9000])
        running.terminate()
        assert running.exit_code() == 0
        assert "Xylophonquark" not in running.log.read_text()
