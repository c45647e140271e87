"""
Clients of NVIDIA's and OpenAI's, as they are, against a sidecar: they get its vectors, and understand its refusals.
"""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
from servers import Sidecar, running_sidecar

from nv_embed.client import Client

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what they warn of when they are imported is their own affair
    from langchain_nvidia_ai_endpoints import NVIDIAEmbeddings
    from llama_index.embeddings.nvidia import NVIDIAEmbedding
    from llama_index.embeddings.openai import OpenAIEmbedding

pytestmark = [pytest.mark.minilm, pytest.mark.filterwarnings("ignore")]

DIMS = (2048, 1024, 768, 512, 384)
TEXTS = ["A dynamo turns motion into current.", "Bread needs flour, water, salt and time.", "🙂 ünïcode"]
QUERY = "What makes electricity?"


@pytest.fixture(scope="module")
def sidecar(folder: Path) -> Iterator[Sidecar]:
    with running_sidecar(folder, "--model", "fake", "--model", "minilm", "--http", "127.0.0.1:0", name="http.sock") as running:
        yield running


@pytest.fixture(scope="module")
def client(sidecar: Sidecar) -> Iterator[Client]:
    with Client(sidecar.address) as client:
        yield client


@pytest.fixture(scope="module")
def base_url(sidecar: Sidecar) -> str:
    return f"http://{sidecar.ready['http'][0]}/v1"


def same(given: Any, expected: Any) -> bool:
    return bool(numpy.array_equal(numpy.float32(given), expected))


@pytest.mark.parametrize("dim", DIMS)
def test_openais_client_gets_the_vectors_at_each_dimension(base_url: str, client: Client, dim: int) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none") as asking:
        for input_type in ("query", "passage"):
            expected = client.embed(TEXTS, dim=dim, model="fake", input_type=input_type)
            by_suffix = asking.embeddings.create(model=f"fake-{input_type}", input=TEXTS, dimensions=dim)
            by_field = asking.embeddings.create(
                model="fake", input=TEXTS, dimensions=dim, extra_body={"input_type": input_type}, encoding_format="float"
            )
            for answer in (by_suffix, by_field):
                assert same([item.embedding for item in answer.data], expected)
                assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_openais_client_lists_the_models_and_reads_the_refusals(base_url: str) -> None:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as asking:
        assert [model.id for model in asking.models.list()] == ["fake", "all-MiniLM-L6-v2"]
        assert asking.models.retrieve("minilm").id == "all-MiniLM-L6-v2"
        with pytest.raises(openai.BadRequestError) as long:
            asking.embeddings.create(model="minilm", input="word " * 300)
        assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
        assert "302 tokens exceed the 256 tokens that model all-MiniLM-L6-v2 reads" in str(long.value)
        with pytest.raises(openai.NotFoundError, match="model 'text-embedding-3-small' is not served here"):
            asking.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.UnprocessableEntityError, match="input is neither text nor token ids"):
            asking.embeddings.create(model="fake", input=[])
        with pytest.raises(openai.BadRequestError, match="was not trained for 1536 dimensions"):
            asking.embeddings.create(model="fake", input="a", dimensions=1536)


def test_openais_client_asks_many_at_a_time(base_url: str, client: Client) -> None:
    texts = [f"text number {number}" for number in range(64)]

    async def ask() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as asking:
            answers = await asyncio.gather(*(asking.embeddings.create(model="minilm", input=text) for text in texts))
        return [answer.data[0].embedding for answer in answers]

    numpy.testing.assert_allclose(asyncio.run(ask()), client.embed(texts, model="minilm"), atol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_langchains_client_of_nim_gets_the_vectors_at_each_dimension(base_url: str, client: Client, dim: int) -> None:
    asking = NVIDIAEmbeddings(base_url=base_url, model="fake", dimensions=dim)
    assert same(asking.embed_documents(TEXTS), client.embed(TEXTS, dim=dim, model="fake"))
    assert same(asking.embed_query(QUERY), client.embed([QUERY], dim=dim, model="fake", input_type="query")[0])


def test_langchains_client_of_nim_finds_the_model_pages_and_reads_the_refusals(base_url: str, client: Client) -> None:
    assert [model.id for model in NVIDIAEmbeddings(base_url=base_url, model="fake").available_models] == ["fake", "all-MiniLM-L6-v2"]
    assert NVIDIAEmbeddings(base_url=base_url).model == "fake"
    asking = NVIDIAEmbeddings(base_url=base_url, model="all-MiniLM-L6-v2")
    texts = [f"text number {number}" for number in range(120)]
    numpy.testing.assert_allclose(asking.embed_documents(texts), client.embed(texts, model="minilm"), atol=1e-6)
    with pytest.raises(Exception, match="Input length 302 exceeds maximum allowed token size 256"):
        asking.embed_query("word " * 300)
    cutting = NVIDIAEmbeddings(base_url=base_url, model="all-MiniLM-L6-v2", truncate="END")
    assert len(cutting.embed_query("word " * 300)) == 384
    answers = asyncio.run(asking.aembed_documents(TEXTS))
    numpy.testing.assert_allclose(answers, client.embed(TEXTS, model="minilm"), atol=1e-6)


@pytest.mark.parametrize("dim", DIMS)
def test_llamaindexs_clients_get_the_vectors_at_each_dimension(base_url: str, client: Client, dim: int) -> None:
    expected = client.embed(TEXTS, dim=dim, model="fake")
    nim = NVIDIAEmbedding(base_url=base_url, model="fake", dimensions=dim)
    assert same(nim.get_text_embedding_batch(TEXTS), expected)
    plain = OpenAIEmbedding(api_base=base_url, api_key="none", model_name="fake-passage", dimensions=dim)
    assert same(plain.get_text_embedding_batch(TEXTS), expected)
    asking = OpenAIEmbedding(api_base=base_url, api_key="none", model_name="fake-query", dimensions=dim)
    assert same(asking.get_query_embedding(QUERY), client.embed([QUERY], dim=dim, model="fake", input_type="query")[0])


def test_llamaindexs_client_of_nim_finds_the_model(base_url: str) -> None:
    assert NVIDIAEmbedding(base_url=base_url).model == "fake"
