"""
LangChain's own tests of what an `Embeddings` and a `VectorStore` do, on both installs and on each kind of connection.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from installs import BOTH, Install
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, VectorStoreIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from psycopg_pool import AsyncConnectionPool
from servers import Sidecar

from nv_embed.langchain import NvEmbeddings, NvVectorStore


@pytest.fixture
def embedding(install: Install, sidecar: Sidecar) -> NvEmbeddings | None:
    """Where the database cannot embed, the store does."""
    return NvEmbeddings(sidecar.address) if install.kind == "library" else None


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NvEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"sidecar": self.address, "dim": 384}

    @pytest.fixture(autouse=True)
    def served(self, sidecar: Sidecar) -> None:
        self.address = sidecar.address


class TestEmbeddingsAlone(EmbeddingsUnitTests):
    """Without a sidecar: none is asked before there is a text."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return NvEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"sidecar": "localhost:1", "model": "fake", "dim": 384, "truncate": "END"}


@BOTH
class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, install: Install, own_database: str, embedding: NvEmbeddings | None) -> Iterator[VectorStore]:
        store = NvVectorStore.create(install.dsn(own_database), "documents", dim=384, embedding=embedding)
        yield store
        store.close()


@BOTH
class TestAsynchronousVectorStore(VectorStoreIntegrationTests):
    @property
    def has_sync(self) -> bool:
        return False

    @pytest.fixture
    async def vectorstore(self, install: Install, own_database: str, embedding: NvEmbeddings | None) -> AsyncIterator[VectorStore]:  # type: ignore[override]
        async with AsyncConnectionPool(install.dsn(own_database), min_size=1, open=False) as pool:
            yield await NvVectorStore.acreate(pool, "documents", dim=384, embedding=embedding)
