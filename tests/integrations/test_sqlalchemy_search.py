"""
Questions in SQLAlchemy's statements: by which index they are answered, what they cost, and that filters leave k rows where there are k.
"""

import asyncio
import datetime
import enum
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mypy.api
import psycopg
import pytest
import sqlalchemy
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, LIBRARY, Install
from sqlalchemy import ForeignKey, String, bindparam, exists, func, select, text, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload, sessionmaker, with_loader_criteria
from workers import drain, working

from nv_embed.client import Client
from nv_embed.errors import InvalidInput, Unavailable
from nv_embed.sqlalchemy import AutoEmbedding, Embedding, EmbeddingIndex, embed_with, embedded_column, search

pytestmark = BOTH

Connect = Callable[..., Connection]


class Base(DeclarativeBase):
    pass


class Kind(enum.Enum):
    prose = "prose"
    verse = "verse"


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    lang: Mapped[str] = mapped_column(String(2))
    body: Mapped[str]
    at: Mapped[datetime.datetime]
    kind: Mapped[Kind]
    tags: Mapped[list[str]] = mapped_column(ARRAY(String))
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship()
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=768, indexes=[EmbeddingIndex(384), EmbeddingIndex()])
    __table_args__ = (AutoEmbedding(Embedding("{body}", "passages", dim=384, chunk_tokens=16, mode="async")),)


NAMES = ["Ada", "it's 100% O'Hara; %1$L"]


@pytest.fixture
def url(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def engine(url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def session(engine: sqlalchemy.Engine, client: Client) -> Iterator[Session]:
    """Of a factory with a sidecar, on 60 documents."""
    maker = sessionmaker(engine)
    embed_with(maker, client)
    with maker() as session:
        authors = [Author(name=name) for name in NAMES]
        session.add_all([document(n, authors[n % 2]) for n in range(60)])
        session.commit()
        yield session


def document(n: int, author: Author) -> Doc:
    return Doc(
        lang="en" if n % 3 else "de", body=f"body {n}", at=datetime.datetime(2026, 1, 1 + n % 20), kind=Kind.verse if n % 5 == 0 else Kind.prose,
        tags=[f"t{n % 4}", "it's"], data={"n": n % 7}, author=author,
    )  # fmt: skip


def plan(session: Session, statement: Any) -> str:
    compiled = statement.compile(session.connection())
    with session.connection().connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN (COSTS OFF) {compiled}", compiled.construct_params())
        return "\n".join(line for (line,) in cursor.fetchall())


@pytest.mark.parametrize(("dim", "index"), [(None, "docs_embedding_768_halfvec_hnsw"), (384, "docs_embedding_384_halfvec_hnsw")])
def test_similar_to_reads_the_index_of_its_prefix(session: Session, dim: int | None, index: str) -> None:
    asked = Doc.embedding.similar_to("a question", dim=dim)
    for statement in (select(Doc).order_by(asked).limit(3), select(Doc.id, asked).where(Doc.lang == "en").order_by(asked).limit(3)):
        told = plan(session, statement)
        assert f"Index Scan using {index} on docs" in told, told
        assert "Order By: " in told


def test_similar_to_is_the_distance_and_takes_a_vector_too(session: Session, client: Client) -> None:
    vector = client.embed(["body 7"], dim=768)[0].tolist()
    for dim in (None, 384):
        asked = Doc.embedding.similar_to(vector, dim=dim)
        nearest, distance = session.execute(select(Doc.body, asked).order_by(asked).limit(1)).one()
        assert (nearest, distance) == ("body 7", pytest.approx(0, abs=1e-3))
        assert session.scalars(select(Doc.body).where(asked < 0.005)).all() == ["body 7"]
        distances = session.scalars(select(asked).order_by(asked)).all()
        assert distances == sorted(distances)


@EXTENSION
def test_a_question_is_embedded_once_a_statement_by_the_database(engine: sqlalchemy.Engine, session: Session, counter: Counter) -> None:
    with sessionmaker(engine)() as plain:
        plain.execute(text("SELECT nv_embed.configure(:at)"), {"at": counter.address})
        plain.commit()
        asked = Doc.embedding.similar_to("a question", dim=384)
        plain.execute(text("SET enable_indexscan = off"))
        assert len(plain.execute(select(Doc, asked).where(asked < 2).order_by(asked)).all()) == 60
        assert len(plain.execute(search(Doc, "another one", k=3, target="embedding")).all()) == 3
    assert counter.pages == [["a question"], ["another one"]]


def test_a_question_is_embedded_once_a_statement_by_the_sessions_sidecar(engine: sqlalchemy.Engine, session: Session, counter: Counter) -> None:
    with Session(engine) as own:
        embed_with(own, counter.address)
        asked = Doc.embedding.similar_to("a question", dim=384)
        assert len(own.execute(select(Doc, asked).where(asked < 2).order_by(asked)).all()) == 60
        assert len(own.execute(search(Doc, "another one", k=3, target="embedding")).all()) == 3
        assert counter.pages == [["a question"], ["another one"]]
        others = [f"question {n}" for n in range(8)]
        for question in others:
            own.execute(select(Doc.id).order_by(Doc.embedding.similar_to(question)).limit(1)).one()
        assert counter.pages[2:] == [[question] for question in others]


@LIBRARY
def test_the_library_without_a_sidecar_says_what_to_do(engine: sqlalchemy.Engine, session: Session) -> None:
    for statement in (select(Doc).order_by(Doc.embedding.similar_to("question")), search(Doc, "question", target="embedding")):
        with Session(engine) as plain, pytest.raises(sqlalchemy.exc.NotSupportedError, match="no question can be embedded inside"):
            plain.execute(statement)


def test_a_failing_sidecar_raises_its_error_and_leaves_the_session_usable(engine: sqlalchemy.Engine, session: Session) -> None:
    with Session(engine) as own:
        with Client("127.0.0.1:1", timeout_s=1) as nowhere:
            embed_with(own, nowhere)
            with pytest.raises(Unavailable):
                own.execute(search(Doc, "question", target="embedding"))
        assert own.scalar(select(func.count()).select_from(Doc)) == 60


FILTERS: list[tuple[str, Any]] = [
    ("equality", lambda: Doc.lang == "en"),
    ("a value that is longer than its column", lambda: Doc.lang == "english"),
    ("several criteria", lambda: (Doc.lang == "en", Doc.id > 20)),
    ("a list", lambda: Doc.lang.in_(["de", "fr"])),
    ("an empty list", lambda: Doc.lang.in_([])),
    ("not in an empty list", lambda: Doc.lang.not_in([])),
    ("tuples", lambda: tuple_(Doc.id, Doc.lang).in_([(1, "de"), (2, "en"), (3, "fr")])),
    ("a subquery", lambda: Doc.author_id.in_(select(Author.id).where(Author.name.like("%100\\%%")))),
    ("a related object's column", lambda: Doc.author.has(Author.name == NAMES[1])),
    ("a related object", lambda: Doc.author == Author(id=1)),
    ("exists", lambda: exists().where(Author.id == Doc.author_id, Author.name != "Ada")),
    ("a pattern", lambda: Doc.body.like("%7")),
    ("a percent sign", lambda: Doc.id % 7 == 3),
    ("a moment", lambda: Doc.at >= datetime.datetime(2026, 1, 15)),
    ("an enumeration", lambda: Doc.kind == Kind.verse),
    ("enumerations", lambda: Doc.kind.in_([Kind.verse])),
    ("an array", lambda: Doc.tags.contains(["t1", "it's"])),
    ("json", lambda: Doc.data["n"].as_integer() == 3),
    ("a parameter", lambda: Doc.id < bindparam("most", 5)),
    ("an injection", lambda: Doc.body == "'); DROP TABLE docs; --%1$s"),
    ("not null", lambda: Doc.embedding.is_not(None)),
]


def test_search_filters_before_it_takes_k(session: Session) -> None:
    for name, criteria in FILTERS:
        asked = criteria()
        wanted = asked if isinstance(asked, tuple) else (asked,)
        expected = set(session.scalars(select(Doc.id).where(*wanted)))
        found = session.execute(search(Doc, "question", k=60, target="embedding").where(*wanted)).all()
        assert {doc.id for doc, _ in found} == expected, name
        scores = [score for _, score in found]
        assert scores == sorted(scores, reverse=True), name
        few = session.scalars(search(Doc, "question", k=3, target="embedding").where(*wanted)).all()
        assert len(few) == min(3, len(expected)), name
        assert {doc.id for doc in few} <= expected, name


def test_search_is_a_select_that_goes_on(session: Session) -> None:
    found = search(Doc, "question", k=10, target="embedding").where(Doc.lang == "en")
    for option in (joinedload(Doc.author), selectinload(Doc.author), with_loader_criteria(Doc, Doc.kind == Kind.prose)):
        rows = session.execute(found.options(option).execution_options(populate_existing=True)).all()
        assert len(rows) == 10
        assert {doc.author.name for doc, _ in rows} <= set(NAMES)
    assert {doc.kind for doc, _ in rows} == {Kind.prose}
    part = found.subquery()
    assert len(session.execute(select(part.c.id, Author.name).join(Author, Author.id == part.c.author_id).where(Author.name == "Ada")).all()) < 10
    with pytest.raises(InvalidInput, match=r"search\(\) of docs is filtered by authors"):
        session.execute(search(Doc, "question", target="embedding").where(Author.id == Doc.author_id))


def test_pieces_are_searched_by_their_target(session: Session, url: str, client: Client) -> None:
    drain(url, client.endpoint)
    doc = session.scalars(search(Doc, client.embed(["body 9"], dim=384)[0].tolist(), k=1, target="passages").where(Doc.lang == "de")).one()
    assert doc.body == "body 9"


def test_prepared_statements_and_pooled_sessions_follow_a_cut_over(
    engine: sqlalchemy.Engine, session: Session, connect: Connect, client: Client, url: str
) -> None:
    """With as many dimensions as before, so that a mix would be no error."""
    db = connect()
    maker = sessionmaker(engine)
    embed_with(maker, client)
    session.rollback()

    def ask() -> None:
        for _ in range(7):
            with maker() as own:
                assert own.scalars(search(Doc, "body 3", k=60, target="embedding")).all()
                assert own.scalars(select(Doc).order_by(Doc.embedding.similar_to("body 3")).limit(1)).all()

    ask()
    with working(url, client.endpoint):
        (id,) = db.execute("SELECT nv_embed.reembed('docs', storage => 'vector')").fetchone() or ()
        deadline = time.monotonic() + 60
        while (now := db.execute("SELECT nv_embed.advance_reembedding(%s)", [id]).fetchone()) != ("ready",):
            assert time.monotonic() < deadline, now
            for (step,) in db.execute("SELECT nv_embed.reembedding_index_steps(%s)", [id]).fetchall() if now == ("indexing",) else []:
                db.execute(step)
            time.sleep(0.05)
        with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as before:
            embed_with(before, client)
            assert len(before.scalars(search(Doc, "body 3", k=5, target="embedding").where(Doc.id < 4)).all()) == 3
            before.rollback()
            before.scalar(select(func.count()).select_from(Author))
            db.execute("SELECT nv_embed.cut_over(%s)", [id])
            assert len(before.scalars(select(Author)).all()) == 2
            with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
                before.scalars(select(Doc.id).order_by(Doc.embedding.similar_to("body 3"))).all()
            assert isinstance(raised.value.orig, psycopg.errors.SerializationFailure)
    ask()


def test_an_async_session_embeds_in_one_call_and_lets_others_run(url: str, engine: sqlalchemy.Engine, counter: Counter) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    def slow(_: Any) -> None:
        time.sleep(0.3)

    async def use() -> None:
        engine = create_async_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        maker = async_sessionmaker(engine)
        embed_with(maker, counter.address)
        others = asyncio.create_task(tick())
        async with maker() as session:
            session.add_all([document(n, Author(name="A")) for n in range(100)])
            counter.refuse = slow
            before = ticks
            await session.commit()
            assert ticks - before > 10
            assert [len(page) for page in counter.pages] == [100]
            found = (await session.execute(search(Doc, "question", k=3, target="embedding").where(Doc.lang == "en"))).all()
            assert len(found) == 3
            nearest = select(Doc).order_by(Doc.embedding.similar_to("question", dim=384)).limit(2)
            assert len((await session.scalars(nearest)).all()) == 2
        assert len(counter.pages) == 3
        async with async_sessionmaker(engine)() as plain:
            plain.add(document(101, Author(name="B")))
            await plain.execute(text("SET LOCAL nv_embed.mode = 'off'"))
            await plain.commit()
        assert len(counter.pages) == 3
        others.cancel()
        await engine.dispose()

    asyncio.run(use())


TYPED = """
from sqlalchemy import Select, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from nv_embed.sqlalchemy import EmbeddingIndex, embed_with, embedded_column, search

class Base(DeclarativeBase): ...

class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[list[float] | None] = embedded_column("{id}", dim=384, indexes=[EmbeddingIndex(256)])

def ask(session: Session) -> None:
    for doc, score in session.execute(search(Doc, "question", k=5).where(Doc.id > 3)):
        reveal_type(doc)
        reveal_type(score)
    reveal_type(search(Doc, [0.1]))
    embed_with(sessionmaker(), "localhost:50051")
"""


def test_types_are_right(tmp_path: Path) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    said, errors, _ = mypy.api.run(["--strict", "--cache-dir", str(tmp_path), str(tmp_path / "typed.py")])
    revealed = [line.split("Revealed type is ")[1].strip('"') for line in said.splitlines() if "Revealed" in line]
    assert revealed == ["typed.Doc", "float", "sqlalchemy.sql.selectable.Select[typed.Doc, float]"], said + errors
    assert "error" not in said
