"""
What Prometheus is told of a sidecar.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from nv_embed_sidecar.engines import Engine
from nv_embed_sidecar.engines.fake import FakeEngine
from program import eventually
from prometheus_client.parser import text_string_to_metric_families
from services import CountingEngine, FailingEngine, connected, serving

from nv_embed import tokens
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

SECRET = "Xylophonquark"


class Scrape(dict[str, float]):
    """Samples by `name{label="value",…}`, as Prometheus writes them; one that is missing is 0."""

    def __missing__(self, key: str) -> float:
        return 0.0


@contextmanager
def both(engine: Engine, **settings: Any) -> Iterator[tuple[EmbedderStub, httpx.Client]]:
    with serving(engine, http=("127.0.0.1:0",), **settings) as server:
        base = httpx.Client(base_url=f"http://{server.http_addresses[0]}", timeout=30)
        with connected(server) as stub, base as http:
            yield stub, http


def scrape(http: httpx.Client) -> Scrape:
    answer = http.get("/v1/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert SECRET not in answer.text
    return Scrape(
        {
            sample.name + "".join(f"[{value}]" for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
    )


def test_requests_are_counted_by_door_call_and_code() -> None:
    with both(FakeEngine()) as (stub, http):
        stub.Embed(pb.EmbedRequest(texts=["one two", "three"], input_type=pb.INPUT_TYPE_QUERY))
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest(texts=["a"], model="other"))
        assert len(list(stub.EmbedStream(iter([pb.EmbedRequest(texts=[SECRET])])))) == 1
        stub.ListModels(pb.ListModelsRequest())
        http.post("/v1/embeddings", json={"input": SECRET})
        http.post("/v1/embeddings", json={"input": "a", "model": "other"})
        http.get(f"/{SECRET}")
        assert eventually(lambda: scrape(http)["nv_embed_requests_total[EmbedStream][OK][grpc]"] == 1)
        said = scrape(http)
    assert said["nv_embed_requests_total[Embed][OK][grpc]"] == 1
    assert said["nv_embed_requests_total[Embed][NOT_FOUND][grpc]"] == 1
    assert said["nv_embed_requests_total[ListModels][OK][grpc]"] == 1
    assert said["nv_embed_requests_total[/v1/embeddings][200][http]"] == 1
    assert said["nv_embed_requests_total[/v1/embeddings][404][http]"] == 1
    assert said["nv_embed_requests_total[other][404][http]"] == 1
    assert said["nv_embed_request_seconds_count[Embed][grpc]"] == 2
    assert said["nv_embed_texts_total[query][fake]"] == 2
    assert said["nv_embed_tokens_total[query][fake]"] == 9
    assert said["nv_embed_texts_total[passage][fake]"] == 2
    assert said["nv_embed_serving"] == 1
    assert said["nv_embed_model_info[cpu][fake][fp32][0123456789ab]"] == 1
    assert said["process_resident_memory_bytes"] > 0


def test_the_queue_and_the_batches_are_seen_by_priority() -> None:
    engine = CountingEngine()
    with both(engine) as (stub, http), ThreadPoolExecutor(3) as pool:
        first = pool.submit(stub.Embed, pb.EmbedRequest(texts=["a"]))
        assert engine.texts.get(timeout=10) == 1
        bulk = pool.submit(stub.Embed, pb.EmbedRequest(texts=["a b", "c"]))
        query = pool.submit(stub.Embed, pb.EmbedRequest(texts=["d"], priority=pb.PRIORITY_INTERACTIVE))
        assert eventually(lambda: scrape(http)["nv_embed_queue_texts[bulk]"] == 2 and scrape(http)["nv_embed_queue_texts[interactive]"] == 1)
        said = scrape(http)
        assert said["nv_embed_queue_tokens[bulk]"] == 9
        assert 0 < said["nv_embed_queue_oldest_seconds[bulk]"] < 30
        for _ in range(6):
            engine.turnstile.put(None)
        for call in (first, bulk, query):
            call.result()
        assert eventually(lambda: scrape(http)["nv_embed_batch_texts_total[fake][bulk]"] == 3)
        said = scrape(http)
    assert said["nv_embed_batch_texts_total[fake][interactive]"] == 1
    assert said["nv_embed_batch_seconds_count[fake][interactive]"] == 1
    assert said["nv_embed_batch_fill_sum[fake][bulk]"] == pytest.approx(13 / 1024)
    assert said["nv_embed_batch_tokens_total[fake][bulk]"] == said["nv_embed_batch_rows_total[fake][bulk]"] == 13
    assert said["nv_embed_queue_texts[bulk]"] == said["nv_embed_queue_oldest_seconds[bulk]"] == 0
    assert said["nv_embed_engine_tokens_per_second[fake]"] > 0


def test_deadlines_that_passed_and_an_engine_that_fails_are_seen() -> None:
    engine = CountingEngine()
    with both(engine) as (stub, http), ThreadPoolExecutor(1) as pool:
        first = pool.submit(stub.Embed, pb.EmbedRequest(texts=["a"]))
        assert engine.texts.get(timeout=10) == 1
        with pytest.raises(grpc.RpcError):
            stub.Embed(pb.EmbedRequest(texts=["b"]), timeout=0.3)
        engine.turnstile.put(None)
        engine.turnstile.put(None)
        first.result()
        # Whichever of the two the sidecar notices first.
        ends = [f"nv_embed_requests_total[Embed][{code}][grpc]" for code in ("CANCELLED", "DEADLINE_EXCEEDED")]
        assert eventually(lambda: sum(scrape(http)[end] for end in ends) == 1)
    broken = FailingEngine(RuntimeError("gone"))
    with both(broken) as (_, http):
        broken.broken = True
        assert http.post("/v1/embeddings", json={"input": "a b"}).status_code == 500
        assert eventually(lambda: scrape(http)["nv_embed_serving"] == 0)
        assert scrape(http)["nv_embed_requests_total[/v1/embeddings][500][http]"] == 1


def test_calls_without_a_valid_token_are_counted_by_call_and_code(tmp_path: Path) -> None:
    token = tokens.add(tmp_path / "tokens.toml", "app")
    with serving(FakeEngine(), http=("127.0.0.1:0",), tokens=tmp_path / "tokens.toml") as server, connected(server) as stub:
        request = pb.EmbedRequest(texts=["a"])
        for metadata in ((), (("authorization", f"Bearer {SECRET}"),)):
            with pytest.raises(grpc.RpcError):
                stub.Embed(request, metadata=metadata)
        with pytest.raises(grpc.RpcError):
            list(stub.EmbedStream(iter([request])))
        with grpc.insecure_channel(server.addresses[0]) as channel:
            for path in (f"/{SECRET}/{SECRET}", f"/{SECRET}/Embed"):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(path)(b"")
        stub.Embed(request, metadata=(("authorization", f"Bearer {token}"),))
        with httpx.Client(base_url=f"http://{server.http_addresses[0]}", headers={"authorization": f"Bearer {token}"}) as http:
            assert eventually(lambda: scrape(http)["nv_embed_requests_total[Embed][OK][grpc]"] == 1)
            said = scrape(http)
    counted = {call: said[f"nv_embed_requests_total[{call}][UNAUTHENTICATED][grpc]"] for call in ("Embed", "EmbedStream", "other")}
    assert counted == {"Embed": 2, "EmbedStream": 1, "other": 2}
    assert said["nv_embed_request_seconds_count[Embed][grpc]"] == 3
