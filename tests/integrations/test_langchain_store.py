"""
The vector store: what is added is found, what fails leaves nothing, and the database keeps its rules.
"""

import datetime
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import mypy.api
import numpy
import psycopg
import pytest
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from servers import Sidecar
from workers import drain, working

from nv_embed.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable, UnknownModel
from nv_embed.langchain import NvEmbeddings, NvVectorStore

pytestmark = BOTH

Connect = Callable[..., Connection]


@pytest.fixture
def embedding(install: Install, sidecar: Sidecar) -> NvEmbeddings | None:
    """Where the database cannot embed, the store does."""
    return NvEmbeddings(sidecar.address) if install.kind == "library" else None


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def store(dsn: str, embedding: NvEmbeddings | None) -> Iterator[NvVectorStore]:
    store = NvVectorStore.create(dsn, "documents", dim=384, embedding=embedding)
    yield store
    store.close()


def count(db: Connection, table: str = "documents") -> int:
    return int((db.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() or (0,))[0])


def test_each_new_document_gets_an_id_of_its_own_in_order(store: NvVectorStore) -> None:
    texts = [f"text {n}" for n in range(1100)]
    given = {3: "mine", 700: "also mine"}
    ids = store.add_texts(texts, [{"n": n} for n in range(1100)], ids=[given.get(n) for n in range(1100)])
    assert len(set(ids)) == 1100
    assert (ids[3], ids[700]) == ("mine", "also mine")
    assert [(d.page_content, d.metadata["n"]) for d in store.get_by_ids(ids)] == [(text, n) for n, text in enumerate(texts)]


def test_of_several_documents_with_one_id_the_last_stays(store: NvVectorStore) -> None:
    assert store.add_texts(["first", "other", "last"], ids=["1", "2", "1"]) == ["1", "2", "1"]
    assert [d.page_content for d in store.get_by_ids(["1", "nobody", "2"])] == ["last", "other"]


def test_a_document_that_takes_the_place_of_another_is_found_by_its_new_text(store: NvVectorStore) -> None:
    store.add_texts(["a violin", "a dynamo"], [{"a": 1}, {}], ids=["1", "2"])
    store.add_texts(["a loaf of bread"], [{"b": 2}], ids=["1"])
    ((best, score),) = store.similarity_search_with_score("a loaf of bread", k=1)
    assert best == Document(id="1", page_content="a loaf of bread", metadata={"b": 2})
    assert score > 0.5
    assert all(score < 0.5 for _, score in store.similarity_search_with_score("violin", k=2))


def test_scores_are_those_of_nv_search(store: NvVectorStore, connect: Connect, sidecar: Sidecar) -> None:
    store.add_texts([f"text number {n}" for n in range(30)], ids=[str(n) for n in range(30)])
    vector = NvEmbeddings(sidecar.address, dim=384).embed_query("number 7")
    rows = connect().execute("SELECT (hit).id, score FROM nv_search(NULL::documents, %s::vector, k => 10)", [str(vector)]).fetchall()
    found = store.similarity_search_with_score("number 7", k=10)
    assert [(d.id, score) for d, score in found] == [(id, pytest.approx(score)) for id, score in rows]
    assert [d.id for d in store.similarity_search_by_vector(vector, k=10)] == [id for id, _ in rows]
    relevant = store.similarity_search_with_relevance_scores("number 7", k=10)
    assert [score for _, score in relevant] == [pytest.approx(max(score, 0)) for _, score in rows]
    threshold = rows[3][1] - 1e-6
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold, "k": 10})
    assert [d.id for d in retriever.invoke("number 7")] == [id for id, score in rows if score >= threshold]


def test_mmr_chooses_as_langchain_does_over_the_stored_vectors(store: NvVectorStore, connect: Connect, sidecar: Sidecar) -> None:
    texts = [f"{animal} {n}" for animal in ("cat", "dog", "owl") for n in range(6)]
    store.add_texts(texts, ids=texts)
    vector = NvEmbeddings(sidecar.address, dim=384).embed_query("cat")
    rows = (
        connect().execute("SELECT id, embedding::real[] FROM documents ORDER BY embedding::vector <=> %s::vector LIMIT 12", [str(vector)]).fetchall()
    )
    for lambda_mult in (0.0, 0.3, 1.0):
        chosen = maximal_marginal_relevance(numpy.array(vector), [row[1] for row in rows], lambda_mult, 4)
        expected = [rows[place][0] for place in chosen]
        assert [d.id for d in store.max_marginal_relevance_search("cat", k=4, fetch_k=12, lambda_mult=lambda_mult)] == expected
        assert [d.id for d in store.max_marginal_relevance_search_by_vector(vector, 4, 12, lambda_mult)] == expected
    diverse = store.as_retriever(search_type="mmr", search_kwargs={"k": 4, "fetch_k": 12, "lambda_mult": 0.0})
    assert len({d.page_content.split()[0] for d in diverse.invoke("cat")}) > 1


def test_a_hybrid_search_finds_words_that_meaning_does_not(store: NvVectorStore) -> None:
    store.add_texts(["the error ERR4711 was raised", *(f"a question about errors {n}" for n in range(20))])
    ((best, score), *_) = store.similarity_search_with_score("question about ERR4711", hybrid=True, rrf_k=10, config="simple")
    assert "ERR4711" in best.page_content or "question" in best.page_content
    assert score <= 2 / 11
    assert any("ERR4711" in d.page_content for d in store.as_retriever(search_kwargs={"hybrid": True, "k": 3}).invoke("ERR4711"))
    with pytest.raises(InvalidInput, match="no relevance scores"):
        store.similarity_search_with_relevance_scores("ERR4711", hybrid=True)


def test_options_are_nv_searchs_and_others_are_refused(store: NvVectorStore) -> None:
    store.add_texts(["one", "two"])
    assert len(store.similarity_search("one", dim=384, rescore=False, oversample=2)) == 2
    with pytest.raises(InvalidInput, match="256"):
        store.similarity_search("one", dim=256)
    for options in ({"rrf_k": 3}, {"target": "x"}, {"k; DROP": 1}):
        with pytest.raises(InvalidInput, match="has no option"):
            store.similarity_search("one", **options)
    with pytest.raises(InvalidInput, match="k is -1"):
        store.similarity_search("one", k=-1)
    with pytest.raises(InvalidInput, match="3 dimensions"):
        store.similarity_search_by_vector([1, 2, 3])


def test_create_leaves_what_is_there(dsn: str, connect: Connect, embedding: NvEmbeddings | None) -> None:
    db = connect()
    for _ in range(2):
        with_texts = NvVectorStore.from_documents([Document(id="1", page_content="one")], embedding, connection=dsn, table="documents", dim=512)  # type: ignore[arg-type]
        with_texts.close()
    assert db.execute("SELECT dim, storage, mode, rows FROM nv_embed.status").fetchone() == (
        512,
        "halfvec",
        "sync" if embedding is None else "async",
        1,
    )
    assert db.execute("SELECT method, dim FROM nv_embed.vector_indexes('documents')").fetchall() == [("hnsw", 512)]
    NvVectorStore.create(dsn, "bare", index=False, dim=384, storage="vector", mode="async").close()
    assert db.execute("SELECT dim, storage, mode FROM nv_embed.status WHERE relation = 'bare'::regclass").fetchone() == (384, "vector", "async")
    assert db.execute("SELECT count(*) FROM nv_embed.vector_indexes('bare')").fetchone() == (0,)


def test_create_takes_the_dimensions_of_the_embedding(dsn: str, sidecar: Sidecar, connect: Connect) -> None:
    store = NvVectorStore.from_texts(["one"], NvEmbeddings(sidecar.address, dim=768, truncate="END"), connection=dsn, table="documents")
    assert connect().execute("SELECT dim, embedded FROM nv_embed.status").fetchone() == (768, 1)
    assert [d.page_content for d in store.similarity_search("one")] == ["one"]
    store.close()


def test_an_embedding_of_another_maker_is_refused(dsn: str) -> None:
    with pytest.raises(InvalidInput, match="DeterministicFakeEmbedding may be any"):
        NvVectorStore.from_texts(["one"], DeterministicFakeEmbedding(size=384), connection=dsn, table="documents")


def test_a_table_that_is_not_embedded_says_how_to_declare_it(dsn: str, connect: Connect, sidecar: Sidecar) -> None:
    connect().execute("CREATE TABLE plain (id text PRIMARY KEY, content text, metadata jsonb)")
    store = NvVectorStore(dsn, "plain", embedding=NvEmbeddings(sidecar.address))
    with pytest.raises(InvalidInput, match=r"SELECT nv_embed.auto_embed\('\"plain\"', '\{content\}'"):
        store.add_texts(["one"])
    with pytest.raises(InvalidInput, match="not auto-embedded"):
        store.max_marginal_relevance_search("one")
    store.close()


def test_an_existing_table_keeps_its_other_columns_and_its_template(
    dsn: str, connect: Connect, embedding: NvEmbeddings | None, sidecar: Sidecar
) -> None:
    db = connect()
    db.execute("CREATE TABLE books (isbn bigint PRIMARY KEY, title text, body text, pages int, more jsonb, kept text DEFAULT 'kept')")
    db.execute("SELECT nv_embed.auto_embed('books', '{title}: {body}', target => 'meaning', dim => 384)")
    store = NvVectorStore(
        dsn, "books", embedding=embedding, id_column="isbn", content_column="body", metadata_column="more", metadata_columns=["title", "pages"],
        target="meaning",
    )  # fmt: skip
    store.add_texts(["strings", "yeast"], [{"title": "violin", "pages": 7, "by": "A"}, {"title": "bread"}], ids=["10", "9"])
    db.execute("UPDATE books SET kept = 'still' WHERE isbn = 10")
    store.add_texts(["strings"], [{"title": "violin", "pages": 8, "by": "B"}], ids=["10"])
    assert store.similarity_search("violin: strings", k=1, filter={"pages": {"$gt": 7}}) == [
        Document(id="10", page_content="strings", metadata={"title": "violin", "pages": 8, "by": "B"})
    ]
    vector = NvEmbeddings(sidecar.address, dim=384).embed_documents(["bread: yeast"])[0]
    ((score,),) = db.execute("SELECT score FROM nv_search(NULL::books, %s::vector, k => 1, target => 'meaning')", [str(vector)]).fetchall()
    assert score == pytest.approx(1, abs=1e-3)
    assert db.execute("SELECT kept FROM books WHERE isbn = 10").fetchone() == ("still",)
    with pytest.raises(psycopg.errors.NotNullViolation):
        store.add_texts(["no id, and no default"])
    store.close()


def test_a_text_that_postgres_writes_in_its_own_way_is_left_to_the_database(dsn: str, connect: Connect, sidecar: Sidecar, install: Install) -> None:
    db = connect()
    db.execute("CREATE TABLE prices (id text PRIMARY KEY, content text, price numeric(8, 2), at timestamp, metadata jsonb)")
    db.execute("SELECT nv_embed.auto_embed('prices', '{content} {price}{at}', dim => 384)")
    store = NvVectorStore(dsn, "prices", embedding=NvEmbeddings(sidecar.address), metadata_columns=["price", "at"])
    store.add_texts(["bread", "  ", ""], [{"price": "1"}, {"price": None}, {"at": datetime.datetime(2026, 1, 2)}], ids=["1", "2", "3"])
    if install.kind == "library":
        drain(dsn, sidecar.address)
    assert {d.id for d in store.similarity_search("bread 1.00")} == {"1", "3"}
    for text in ("bread 1.00", " 2026-01-02 00:00:00"):
        vector = NvEmbeddings(sidecar.address, dim=384).embed_documents([text])[0]
        ((score,),) = db.execute("SELECT score FROM nv_search(NULL::prices, %s::vector, k => 1)", [str(vector)]).fetchall()
        assert score == pytest.approx(1, abs=1e-3), text
    store.close()


def test_ids_are_as_their_column_has_them(dsn: str, connect: Connect, embedding: NvEmbeddings | None) -> None:
    db = connect()
    db.execute("CREATE TABLE documents (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), content text, metadata jsonb)")
    db.execute("SELECT nv_embed.auto_embed('documents', '{content}', dim => 384)")
    store = NvVectorStore(dsn, "documents", embedding=embedding)
    first, second = f"{'A' * 8}-0000-0000-0000-{'B' * 12}", f"{'0' * 8}-0000-0000-0000-{'0' * 12}"
    ids = store.add_texts(["one", "two", "three", "four"], ids=[first, second, None, first])
    assert ids[:2] == [first.lower(), second]
    assert ids[3] == ids[0]
    assert [d.page_content for d in store.get_by_ids(ids[2::-1])] == ["three", "two", "four"]
    assert {d.page_content for d in store.get_by_ids([first, second])} == {"four", "two"}
    assert store.get_by_ids([]) == []
    assert store.delete([])
    assert count(db) == 3
    store.delete([first])
    store.delete()
    assert count(db) == 0


def test_a_re_embedding_goes_on_unnoticed(dsn: str, connect: Connect, sidecar: Sidecar, store: NvVectorStore, embedding: NvEmbeddings | None) -> None:
    db = connect()
    texts = [f"text {n}" for n in range(20)]
    store.add_texts(texts, ids=texts)

    def ask() -> None:
        for _ in range(7):  # as often as psycopg needs to prepare a statement
            assert len(store.similarity_search("text", k=30, filter={"n": None})) == len(store.get_by_ids(texts))
            assert len(store.max_marginal_relevance_search("text", k=3)) == 3

    ask()
    with working(dsn, sidecar.address):
        (id,) = db.execute("SELECT nv_embed.reembed('documents', dim => 512)").fetchone() or ()
        deadline = time.monotonic() + 60
        while (now := db.execute("SELECT nv_embed.advance_reembedding(%s)", [id]).fetchone()) != ("ready",):
            assert time.monotonic() < deadline, now
            for (step,) in db.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id]).fetchall() if now == ("indexing",) else []:
                db.execute(step)
            time.sleep(0.05)
        ask()
        db.execute("SELECT nv_embed.cut_over(%s)", [id])
    ask()
    store.add_texts(["text 3 is another", "a violin"], ids=["text 3", "text 21"])
    assert [d.id for d in store.similarity_search("violin", k=1)] == ["text 21"]
    assert db.execute("SELECT dim, embedded, pending FROM nv_embed.status").fetchone() == (512, 21, 0)


def test_pieces_are_left_to_the_database_and_their_rows_found(dsn: str, connect: Connect, sidecar: Sidecar, install: Install) -> None:
    db = connect()
    db.execute("CREATE TABLE long (id text PRIMARY KEY, content text, metadata jsonb)")
    db.execute("SELECT nv_embed.auto_embed('long', '{content}', 'pieces', dim => 384, chunk_tokens => 8, mode => 'async')")
    store = NvVectorStore(dsn, "long", embedding=NvEmbeddings(sidecar.address), target="pieces")
    store.add_texts(["one two three four five six seven eight nine ten eleven twelve", "bread"], ids=["1", "2"])
    drain(dsn, sidecar.address)
    assert [d.id for d in store.similarity_search("nine ten eleven twelve")] == ["1", "2"]
    store.close()


def test_a_worker_embeds_what_was_added_in_mode_async(dsn: str, sidecar: Sidecar, counter: Counter) -> None:
    store = NvVectorStore.create(dsn, "documents", dim=384, mode="async")
    store.add_texts(["a violin", *(f"text {n}" for n in range(50))])
    asking = NvVectorStore(dsn, "documents", embedding=NvEmbeddings(counter.address))
    assert asking.similarity_search("violin") == []
    drain(dsn, sidecar.address)
    assert [d.page_content for d in asking.similarity_search("violin", k=1)] == ["a violin"]
    assert counter.pages == [["violin"]] * 2
    for each in (store, asking):
        each.close()


@EXTENSION
def test_the_database_embeds_in_few_calls_and_only_what_has_changed(dsn: str, connect: Connect, store: NvVectorStore, counter: Counter) -> None:
    connect().execute("SELECT nv_embed.configure(%s)", [counter.address])
    ids = [str(n) for n in range(600)]
    store.add_texts([f"text {n}" for n in range(600)], ids=ids)
    assert sum(map(len, counter.pages)) == 600
    assert len(counter.pages) < 10
    before = len(counter.pages)
    store.add_texts([f"text {n}" if n else "another" for n in range(600)], [{"n": n} for n in range(600)], ids=ids)
    assert counter.pages[before:] == [["another"]]


def test_langchains_indexing_adds_changes_and_removes(store: NvVectorStore, connect: Connect) -> None:
    manager = InMemoryRecordManager("documents")
    manager.create_schema()
    documents = [Document(page_content=f"text {n}", metadata={"source": f"file {n}"}) for n in range(3)]
    options: dict[str, Any] = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    assert index(documents, manager, store, **options)["num_added"] == 3
    assert index(documents[:2], manager, store, **options) == {"num_added": 0, "num_updated": 0, "num_skipped": 2, "num_deleted": 1}
    assert count(connect()) == 2


FAILURES = [
    (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
    (grpc.StatusCode.NOT_FOUND, UnknownModel),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
]


def test_a_failing_sidecar_raises_the_tables_error_and_nothing_is_written(
    install: Install, dsn: str, connect: Connect, counter: Counter, embedding: NvEmbeddings | None
) -> None:
    db = connect()
    if embedding is None:
        db.execute("SELECT nv_embed.configure(%s)", [counter.address])
    else:
        embedding = NvEmbeddings(counter.address)
    store = NvVectorStore.create(db, "documents", dim=384, embedding=embedding)
    store.add_texts(["there"], ids=["there"])
    for status, error in FAILURES:
        counter.refuse = lambda texts, status=status: (  # type: ignore[misc]
            (status, "no", (("nv-embed-retry-after-s", "1"),)) if "bad" in texts or "bad question" in texts else None
        )
        with pytest.raises(error):
            store.add_texts([f"good {n}" for n in range(20)] + ["bad"], ids=["there"] + [f"new {n}" for n in range(19)] + [None])
        for search in (store.similarity_search, store.max_marginal_relevance_search):
            with pytest.raises(error):
                search("bad question")
    assert count(db) == 1
    assert [d.page_content for d in store.similarity_search("there")] == ["there"]


def test_no_sidecar_is_unavailable(dsn: str, connect: Connect, embedding: NvEmbeddings | None, store: NvVectorStore) -> None:
    if embedding is None:
        connect().execute("SELECT nv_embed.configure('127.0.0.1:1')")
    else:
        store = NvVectorStore(dsn, "documents", embedding=NvEmbeddings("127.0.0.1:1", timeout_s=5))
    with pytest.raises(Unavailable, match=r"doctor|failed"):
        store.add_texts(["one"])
    with pytest.raises(Unavailable):
        store.similarity_search("one")
    assert count(connect()) == 0


def test_a_text_too_long_names_its_document(dsn: str, sidecar: Sidecar) -> None:
    store = NvVectorStore.create(dsn, "documents", dim=384, embedding=NvEmbeddings(sidecar.address))
    with pytest.raises(InvalidInput, match="text 3: "):
        store.add_texts(["", "short", "word " * 10000])
    for content, says in (("a\0b", "document 2 has a NUL"), ("\ud800", "document 2 is no Unicode")):
        with pytest.raises(InvalidInput, match=says):
            store.add_texts(["one", content])
    with pytest.raises(InvalidInput, match="2 texts, 1 ids and 2 metadatas"):
        store.add_texts(["one", "two"], ids=["1"])
    assert store.similarity_search("short") == []
    store.close()


def test_row_level_security_is_kept(connect: Connect, embedding: NvEmbeddings | None) -> None:
    db = connect()
    owner = NvVectorStore.create(db, "documents", dim=384, embedding=embedding)
    db.execute("ALTER TABLE documents ADD COLUMN role name DEFAULT current_user")
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY own ON documents USING (role = current_user) WITH CHECK (role = current_user)")
    db.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON documents TO app")
    owner.add_texts(["a secret", "another secret"], ids=["1", "2"])
    theirs = NvVectorStore(connect("app"), "documents", embedding=embedding)
    theirs.add_texts(["nothing special"], ids=["3"])
    for hybrid in (False, True):
        assert [d.id for d in theirs.similarity_search("a secret", k=10, hybrid=hybrid)] == ["3"]
    assert [d.id for d in theirs.similarity_search("a secret", filter={"$or": [{"x": 1}, {"x": {"$ne": 1}}]})] == ["3"]
    assert [d.id for d in theirs.max_marginal_relevance_search("a secret")] == ["3"]
    assert theirs.get_by_ids(["1", "2"]) == []
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        theirs.add_texts(["taken over"], ids=["1"])
    theirs.delete(["1", "3"])
    theirs.delete()
    assert [d.page_content for d in owner.get_by_ids(["1", "2", "3"])] == ["a secret", "another secret"]


def test_nothing_but_the_package_needs_langchain() -> None:
    program = """
import sys
sys.modules["langchain_core"] = None
import nv_embed.client, nv_embed.sqlalchemy, nv_embed.alembic, nv_embed.worker, nv_embed.cli
"""
    subprocess.run([sys.executable, "-c", program], check=True)


TYPED = """
import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from nv_embed.langchain import NvEmbeddings, NvVectorStore

def use(connection: psycopg.Connection, pool: ConnectionPool, apool: AsyncConnectionPool, aconnection: psycopg.AsyncConnection) -> None:
    for database in (connection, pool, apool, aconnection, "host=/tmp"):
        NvVectorStore("host=/tmp", "documents")
    NvVectorStore(connection, "documents")
    NvVectorStore(pool, "documents", embedding=NvEmbeddings("localhost:50051"))
    NvVectorStore(apool, "documents")
    NvVectorStore(aconnection, "documents")
    store = NvVectorStore.create("host=/tmp", "documents", dim=384)
    reveal_type(store)
    reveal_type(NvVectorStore.from_texts(["one"], connection=pool, table="documents"))
    reveal_type(store.similarity_search_with_score("question", 3, {"lang": {"$in": ["en"]}}, hybrid=True))
    reveal_type(store.as_retriever().invoke("question"))
"""


def test_types_are_right(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    said, errors, _ = mypy.api.run(["--strict", "--cache-dir", str(tmp_path), str(tmp_path / "typed.py")])
    revealed = [line.split("Revealed type is ")[1].strip('"') for line in said.splitlines() if "Revealed" in line]
    document = "langchain_core.documents.base.Document"
    store = "nv_embed.langchain.store.NvVectorStore"
    assert revealed == [store, store, f"list[tuple[{document}, float]]", f"list[{document}]"], said + errors
    assert "error" not in said, said
