"""
What a vector store is given to reach the database by, and that each kind is used as its owner expects.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from servers import Sidecar

from nv_embed.errors import InvalidInput, Overloaded
from nv_embed.langchain import NvEmbeddings, NvVectorStore

pytestmark = BOTH

Connect = Callable[..., Connection]


@pytest.fixture
def embedding(install: Install, sidecar: Sidecar) -> NvEmbeddings | None:
    return NvEmbeddings(sidecar.address) if install.kind == "library" else None


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def store(dsn: str, embedding: NvEmbeddings | None) -> Iterator[NvVectorStore]:
    store = NvVectorStore.create(dsn.replace("postgresql://", "postgresql+psycopg://"), "documents", dim=384, embedding=embedding)
    yield store
    store.close()


def sessions(db: Connection) -> int:
    """How many others there are in this database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    return int((db.execute(query).fetchone() or (0,))[0])


def test_a_dsn_keeps_its_connection_and_outlives_a_server_that_ends_it(store: NvVectorStore, connect: Connect) -> None:
    db = connect()
    for _ in range(5):
        store.add_texts(["one"])
    assert sessions(db) == 1
    db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
    assert len(store.similarity_search("one", k=9)) == 5
    store.close()
    deadline = time.monotonic() + 10
    while sessions(db):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_store_that_is_dropped_closes_what_it_has_opened(dsn: str, connect: Connect) -> None:
    store = NvVectorStore(dsn, "documents")
    with pytest.raises(psycopg.errors.UndefinedTable):
        store.get_by_ids(["1"])
    db = connect()
    assert sessions(db) == 1
    del store
    gc.collect()
    deadline = time.monotonic() + 10
    while sessions(db):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_many_threads_share_a_store(store: NvVectorStore, dsn: str, embedding: NvEmbeddings | None) -> None:
    with psycopg.connect(dsn) as connection, ConnectionPool(dsn, min_size=1, max_size=3, open=True, kwargs={"row_factory": dict_row}) as pool:
        stores = [store, NvVectorStore(connection, "documents", embedding=embedding), NvVectorStore(pool, "documents", embedding=embedding)]

        def use(n: int) -> list[str | None]:
            used = stores[n % 3]
            used.add_texts([f"text {n}"], [{"n": n}], ids=[str(n)])
            return [d.id for d in used.similarity_search("text", k=1, filter={"n": n})]

        with ThreadPoolExecutor(12) as threads:
            assert list(threads.map(use, range(48))) == [[str(n)] for n in range(48)]


def test_programs_that_start_together_create_together(dsn: str, embedding: NvEmbeddings | None, connect: Connect) -> None:
    together = threading.Barrier(6)

    def create(_: int) -> None:
        together.wait()
        NvVectorStore.create(dsn, "documents", dim=384, embedding=embedding).close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(create, range(6)))
    assert connect().execute("SELECT count(*) FROM nv_embed.vector_indexes('documents')").fetchone() == (1,)


def test_a_connections_transaction_stays_its_owners(store: NvVectorStore, dsn: str, embedding: NvEmbeddings | None) -> None:
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        within: NvVectorStore = NvVectorStore(connection, "documents", embedding=embedding)
        with connection.transaction(force_rollback=True):
            within.add_texts(["one"], ids=["1"])
            with pytest.raises(InvalidInput):
                within.add_texts(["word " * 10000])
            assert [d.id for d in within.similarity_search("one")] == ["1"]
        assert within.similarity_search("one") == []
        connection.execute("SELECT 1")
        within.add_texts(["two"], ids=["2"])
        assert store.get_by_ids(["2"]) == []
        connection.commit()
        assert [d.id for d in store.get_by_ids(["2"])] == ["2"]
        connection.rollback()
        within.add_texts(["three"], ids=["3"])
        assert [d.id for d in store.get_by_ids(["3"])] == ["3"]


def test_a_sidecar_that_is_slow_lets_the_loop_go_on(
    store: NvVectorStore, dsn: str, install: Install, embedding: NvEmbeddings | None, counter: Counter, connect: Connect
) -> None:
    if install.kind == "extension":
        connect().execute("SELECT nv_embed.configure(%s)", [counter.address])
    else:
        embedding = NvEmbeddings(counter.address)

    def slow(_: Any) -> None:
        time.sleep(0.3)

    async def use(store: NvVectorStore) -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        others = asyncio.create_task(tick())
        counter.refuse = slow
        ids = await store.aadd_texts(["one", "two"], [{"n": 1}, {"n": 2}])
        found = await asyncio.gather(*(store.asimilarity_search(f"text {n}", k=1, filter={"n": n}) for n in (1, 2)))
        counter.refuse = lambda _: None
        assert [d.id for (d,) in found] == ids
        assert ticks > 30
        assert [d.id for d in await store.amax_marginal_relevance_search("one", k=2, lambda_mult=1)] == ids
        assert [d.id for d in await store.amax_marginal_relevance_search_by_vector([1.0] * 384, filter={"n": 1})] == ids[:1]
        assert len(await store.asimilarity_search_by_vector([1.0] * 384, 1)) == 1
        assert len(await store.asimilarity_search_with_relevance_scores("one", 1, score_threshold=0.1)) == 1
        assert len(await store.as_retriever(search_kwargs={"hybrid": True}).ainvoke("one")) == 2
        assert await store.aget_by_ids(["nobody"]) == []
        assert await store.adelete()
        others.cancel()

    async def use_each() -> None:
        await use(NvVectorStore(dsn, "documents", embedding=embedding))
        async with AsyncConnectionPool(dsn, min_size=2, open=False, kwargs={"row_factory": dict_row}) as pool:
            await use(NvVectorStore(pool, "documents", embedding=embedding))
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await use(NvVectorStore(connection, "documents", embedding=embedding))

    asyncio.run(use_each())


def test_an_asynchronous_connection_is_awaited(dsn: str, embedding: NvEmbeddings | None) -> None:
    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            store = await NvVectorStore.afrom_texts(["one"], embedding, connection=connection, table="documents", dim=384)
            with pytest.raises(InvalidInput, match="asynchronous connection"):
                store.similarity_search("one")
            with pytest.raises(InvalidInput, match="has no option"):
                await store.asimilarity_search("one", nothing=1)
            async with connection.transaction(force_rollback=True):
                await store.adelete()
            assert len(await store.asimilarity_search("one")) == 1

    asyncio.run(use())


@EXTENSION
def test_a_call_that_is_cancelled_is_cancelled_in_the_database(dsn: str, connect: Connect, counter: Counter) -> None:
    db = connect()
    db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    begun = threading.Event()
    go_on = threading.Event()

    def wait(_: Any) -> None:
        begun.set()
        go_on.wait(30)

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            store = await NvVectorStore.acreate(connection, "documents", dim=384)
            counter.refuse = wait
            adding = asyncio.create_task(store.aadd_texts(["one"]))
            await asyncio.to_thread(begun.wait, 30)
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding
            counter.refuse = lambda _: None
            go_on.set()
            assert await store.asimilarity_search("one") == []
            await store.aadd_texts(["two"])
            assert len(await store.asimilarity_search("one")) == 1

    asyncio.run(use())


def test_embeddings_raise_the_tables_errors_and_ask_questions_first(sidecar: Sidecar, counter: Counter) -> None:
    import grpc

    embeddings = NvEmbeddings(counter.address, dim=384, truncate="END")
    assert embeddings.embed_documents([]) == []
    (document,) = embeddings.embed_documents(["word " * 10000])
    assert len(document) == 384
    assert sum(number * number for number in document) == pytest.approx(1, abs=1e-4)
    assert embeddings.embed_query("one") != embeddings.embed_documents(["one"])[0]
    assert asyncio.run(embeddings.aembed_query("one")) == embeddings.embed_query("one")
    counter.refuse = lambda _: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("nv-embed-retry-after-s", "2"),))
    with pytest.raises(Overloaded) as raised:
        embeddings.embed_query("one")
    assert raised.value.retry_after_s == 2
    for wrong in (lambda: NvEmbeddings("x", dim=0), lambda: NvEmbeddings(sidecar.address, dim=100).embed_query("one")):
        with pytest.raises(InvalidInput):
            wrong()
    with pytest.raises(InvalidInput, match="text 2: this is no Unicode text"):
        embeddings.embed_documents(["one", "\ud800"])
