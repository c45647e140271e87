"""
Sessions that embed what they flush: one call, the right vectors, and what is left to the database.
"""

import enum
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import psycopg
import pytest
import sqlalchemy
from conftest import Connection
from counting import Counter
from installs import BOTH, EXTENSION, Install
from sqlalchemy import Computed, event, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from vectors import cosine, one, parsed
from workers import drain, working

from nv_embed.client import Client
from nv_embed.errors import InvalidInput, Overloaded, UnknownModel
from nv_embed.sqlalchemy import embed_with, embedded_column

pytestmark = BOTH

Connect = Callable[..., Connection]


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    body: Mapped[str]
    hits: Mapped[int] = mapped_column(server_default="0")
    embedding: Mapped[list[float] | None] = embedded_column("{title}\n{body}", dim=384)


class Late(Base):
    """Left to the worker, by declaration."""

    __tablename__ = "late"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=384, mode="async")


class Kind(enum.Enum):
    letter = "letter"


class Odd(Base):
    """Texts that cannot be told outside of the database."""

    __tablename__ = "odd"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[Kind | None]
    price: Mapped[float | None]
    stamp: Mapped[str] = mapped_column(server_default="stamped")
    body: Mapped[str]
    shout: Mapped[str] = mapped_column(Computed("upper(body)", persisted=True))
    of_default: Mapped[list[float] | None] = embedded_column("{stamp} {body}", dim=384)
    of_number: Mapped[list[float] | None] = embedded_column("{price} {body}", dim=384)
    of_enum: Mapped[list[float] | None] = embedded_column("{kind} {body}", dim=384)
    of_generated: Mapped[list[float] | None] = embedded_column("{shout}", dim=384)
    of_key: Mapped[list[float] | None] = embedded_column("{id} {body}", dim=384)


@pytest.fixture
def url(install: Install, own_database: str) -> str:
    return install.dsn(own_database).replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def engine(url: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def maker(engine: sqlalchemy.Engine, counter: Counter) -> sessionmaker[Session]:
    made = sessionmaker(engine)
    embed_with(made, counter.address)
    return made


def assert_right(session: Session, client: Client, column: Any, source: Any, rows: int) -> None:
    """Every row with content has the vector of just its text."""
    found = session.execute(select(source, column)).all()
    texts = [told for told, _ in found]
    assert len(found) == rows
    for (told, vector), expected in zip(found, client.embed(texts, dim=384), strict=True):
        assert vector is not None, told
        assert cosine(vector, expected) > 0.999, told


OWN = [1.0] + [0.0] * 383
RENDERED = func.concat(Doc.title, "\n", Doc.body)


def test_a_flush_of_500_objects_makes_one_call_and_leaves_the_database_nothing_to_do(
    maker: sessionmaker[Session], counter: Counter, client: Client
) -> None:
    with maker() as session:
        session.add_all([Doc(title=None if n % 3 else f"title {n}", body=f"body {n}") for n in range(500)])
        session.commit()
        assert [len(page) for page in counter.pages] == [500]
        assert session.scalar(text("SELECT count(*) FROM nv_embed.job")) == 0
        assert_right(session, client, Doc.embedding, RENDERED, 500)


def test_new_and_changed_objects_of_a_flush_are_embedded_together(maker: sessionmaker[Session], counter: Counter, client: Client) -> None:
    with maker() as session:
        session.add_all([Doc(id=n, title="t", body=f"body {n}") for n in range(4)])
        session.commit()
        counter.pages.clear()
        first, second, third, fourth = session.scalars(select(Doc).order_by(Doc.id))
        first.body, second.title, third.hits, fourth.body = "changed", None, 3, " "
        session.add(Doc(id=9, title="new", body="row"))
        session.commit()
        assert [sorted(page) for page in counter.pages] == [sorted(["\nbody 1", "new\nrow", "t\nchanged", "t\n "])]
        fourth.title = "\t"
        session.commit()
        assert fourth.embedding is None
        session.delete(fourth)
        session.commit()
        assert_right(session, client, Doc.embedding, RENDERED, 4)
        assert len(counter.pages) == 1


def test_a_vector_that_was_set_and_an_object_that_did_not_change_are_left_alone(maker: sessionmaker[Session], counter: Counter) -> None:
    with maker() as session:
        doc = Doc(id=1, body="text", embedding=OWN)
        session.add(doc)
        session.commit()
        assert doc.embedding == OWN
        doc.body, doc.embedding = "other", [0.0, *OWN[:-1]]
        session.commit()
        doc.body = "other"
        doc.hits = 2
        session.commit()
        assert doc.embedding == [0.0, *OWN[:-1]]
    assert counter.pages == []


def test_an_object_that_was_expired_is_embedded_once(maker: sessionmaker[Session], counter: Counter, client: Client) -> None:
    with maker() as session:
        doc = Doc(id=1, body="body")
        session.add(doc)
        session.commit()
        counter.pages.clear()
        doc.title = "title"
        session.commit()
        assert counter.pages == [["title\nbody"]]
        assert session.scalar(text("SELECT count(*) FROM nv_embed.job")) == 0
        assert_right(session, client, Doc.embedding, RENDERED, 1)


def refused(maker: sessionmaker[Session]) -> Doc:
    """An object whose row was refused after it had got its vector, with another text since."""
    with maker() as session:
        session.execute(insert(Doc).values(id=1, body="there", embedding=OWN))
        session.commit()
        doc = Doc(id=1, body="before")
        session.add(doc)
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            session.commit()
    assert doc.embedding is not None
    doc.id, doc.body = 2, "after"
    return doc


@pytest.mark.parametrize("way", ["added", "pickled", "merged"])
def test_an_object_whose_row_was_refused_comes_again_with_the_vector_of_its_new_text(maker: sessionmaker[Session], client: Client, way: str) -> None:
    doc = refused(maker)
    with maker() as session:
        if way == "merged":
            session.merge(doc)
        else:
            session.add(pickle.loads(pickle.dumps(doc)) if way == "pickled" else doc)
        session.commit()
        session.execute(text("DELETE FROM docs WHERE id = 1"))
        assert_right(session, client, Doc.embedding, RENDERED, 1)


def test_one_that_is_left_to_a_worker_then_brings_no_vector_of_before(
    maker: sessionmaker[Session], client: Client, url: str, counter: Counter
) -> None:
    doc = refused(maker)
    with maker() as session:
        session.execute(text("SET LOCAL nv_embed.mode = 'async'"))
        session.add(doc)
        session.commit()
        assert doc.embedding is None
    drain(plain(url), counter.address)
    with maker() as session:
        session.execute(text("DELETE FROM docs WHERE id = 1"))
        assert_right(session, client, Doc.embedding, RENDERED, 1)


def test_one_that_then_got_a_vector_of_the_users_keeps_it(maker: sessionmaker[Session], counter: Counter) -> None:
    doc = refused(maker)
    counter.pages.clear()
    with maker() as session:
        doc.embedding = OWN
        session.add(doc)
        session.commit()
        assert doc.embedding == OWN
    assert counter.pages == []


def test_what_a_savepoint_has_taken_back_is_embedded_by_its_new_text(maker: sessionmaker[Session], client: Client) -> None:
    with maker() as session:
        changed = Doc(id=1, body="first")
        session.add(changed)
        session.flush()
        savepoint = session.begin_nested()
        new = Doc(id=2, body="before")
        session.add(new)
        changed.body = "meanwhile"
        session.flush()
        savepoint.rollback()
        session.add(new)
        new.body, changed.title = "after", "title"
        session.commit()
        assert_right(session, client, Doc.embedding, RENDERED, 2)


def test_a_flush_that_another_listener_stops_leaves_no_vectors_to_the_next(maker: sessionmaker[Session], client: Client) -> None:
    def stop(*_: Any) -> None:
        raise RuntimeError

    with maker() as session:
        back, changed, new = Doc(id=1, body="first"), Doc(id=2, body="second"), Doc(id=3, body="before")
        session.add_all([back, changed])
        session.commit()
        session.add(new)
        back.body = changed.body = "meanwhile"
        event.listen(session, "before_flush", stop)
        with pytest.raises(RuntimeError):
            session.flush()
        event.remove(session, "before_flush", stop)
        back.body, changed.body, new.body = "first", "changed", "after"
        session.commit()
        assert_right(session, client, Doc.embedding, RENDERED, 3)


def test_columns_that_others_have_changed_meanwhile_are_read_again(maker: sessionmaker[Session], connect: Connect, client: Client) -> None:
    other = connect()
    with maker() as session:
        session.add(Doc(id=1, title="old", body="body"))
        session.commit()
        doc = session.get(Doc, 1)
        assert doc is not None
        assert doc.title == "old"
        other.execute("UPDATE docs SET title = 'theirs' WHERE id = 1")
        doc.body = "ours"
        session.commit()
        assert session.scalar(select(RENDERED)) == "theirs\nours"
        assert_right(session, client, Doc.embedding, RENDERED, 1)


def test_a_failing_sidecar_raises_its_error_writes_nothing_and_leaves_the_session_usable(
    maker: sessionmaker[Session], counter: Counter, client: Client
) -> None:
    with maker() as session:
        session.add(Doc(id=1, body="there"))
        session.commit()
        counter.refuse = lambda texts: (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("nv-embed-retry-after-s", "7"),))
        session.add(Doc(id=2, body="new"))
        for _ in range(2):
            with pytest.raises(Overloaded) as raised:
                session.commit()
            assert raised.value.retry_after_s == 7
        with session.no_autoflush:
            assert session.scalar(text("SELECT count(*) FROM docs")) == 1
        counter.refuse = lambda texts: None
        session.commit()
        assert_right(session, client, Doc.embedding, RENDERED, 2)


def test_a_text_that_is_too_long_names_its_object(engine: sqlalchemy.Engine, client: Client) -> None:
    with Session(engine) as session:
        embed_with(session, client)
        session.add_all([Doc(id=5, body="short"), Doc(id=6, title="t", body="word " * 20_000)])
        with pytest.raises(InvalidInput, match=r"^Doc\(id=6\): .*tokens"):
            session.flush()


def test_what_cannot_be_told_here_is_left_to_the_database(maker: sessionmaker[Session], counter: Counter, client: Client, url: str) -> None:
    with maker() as session:
        session.add(Odd(id=1, kind=Kind.letter, price=0.1, body="of mine"))
        session.commit()
        sent = [page for page in counter.pages if page == ["1 of mine"]]
        assert sent == counter.pages
    drain(plain(url), counter.address)
    with maker() as session:
        assert_right(session, client, Odd.of_default, func.concat(Odd.stamp, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_number, func.concat(Odd.price, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_enum, func.concat(Odd.kind, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_generated, Odd.shout, 1)
        assert_right(session, client, Odd.of_key, func.concat(Odd.id, " ", Odd.body), 1)


def test_a_row_that_an_event_rewrites_gets_the_vector_of_what_was_written(
    maker: sessionmaker[Session], client: Client, url: str, counter: Counter
) -> None:
    def shout(mapper: Any, connection: Any, doc: Doc) -> None:
        doc.body = doc.body.upper()

    for name in ("before_insert", "before_update"):
        event.listen(Doc, name, shout)
    try:
        with maker() as session:
            session.add_all([Doc(id=1, body="quiet"), Doc(id=2, body="LOUD")])
            session.commit()
            drain(plain(url), counter.address)
            assert_right(session, client, Doc.embedding, RENDERED, 2)
            for doc in session.scalars(select(Doc)):
                doc.body = "again"
            session.commit()
            drain(plain(url), counter.address)
            assert_right(session, client, Doc.embedding, RENDERED, 2)
    finally:
        for name in ("before_insert", "before_update"):
            event.remove(Doc, name, shout)


def test_modes_say_who_embeds(maker: sessionmaker[Session], counter: Counter, client: Client, url: str) -> None:
    with maker() as session:
        session.add(Late(body="by the worker"))
        session.commit()
        session.execute(text("SET LOCAL nv_embed.mode = 'async'"))
        session.add(Doc(body="deferred"))
        session.commit()
        assert session.scalars(text("SELECT count(*) FROM nv_embed.job")).all() == [2]
        assert counter.pages == []
        session.execute(text("SELECT nv_embed.alter_auto_embed('docs', mode => 'off')"))
        session.add(Doc(body="switched off"))
        session.commit()
        assert counter.pages == []
    drain(plain(url), counter.address)
    with maker() as session:
        assert_right(session, client, Late.embedding, Late.body, 1)
        assert session.scalars(select(Doc.embedding.is_not(None)).order_by(Doc.id)).all() == [True, False]


def test_what_no_flush_writes_is_left_to_the_database(maker: sessionmaker[Session], counter: Counter, client: Client, url: str) -> None:
    with maker() as session:
        session.execute(insert(Doc), [{"body": f"bulk {n}"} for n in range(20)])
        session.execute(insert(Doc).values(body="one"))
        session.commit()
    drain(plain(url), counter.address)
    with maker() as session:
        assert_right(session, client, Doc.embedding, RENDERED, 21)


def test_sessions_that_nobody_gave_a_sidecar_are_left_alone(engine: sqlalchemy.Engine, maker: sessionmaker[Session], counter: Counter) -> None:
    with sessionmaker(engine)() as session:
        session.execute(text("SET LOCAL nv_embed.mode = 'async'"))
        session.add(Doc(body="text"))
        session.commit()
    assert counter.pages == []


def test_a_cut_over_between_two_flushes_changes_the_model_and_one_within_waits(
    maker: sessionmaker[Session], connect: Connect, client: Client, url: str, counter: Counter
) -> None:
    """The application goes on with metadata of before: what does not fit them any more is left to the database."""
    db = connect()
    with maker() as session, working(plain(url), counter.address):
        session.add(Doc(id=1, body="before"))
        session.commit()
        ready(db, "dim => 512")
        session.add(Doc(id=2, body="meanwhile"))
        refused: list[Any] = []
        counter.refuse = lambda texts: refused.append(locked(db)) if list(texts) == ["\nmeanwhile"] and not refused else None
        session.commit()
        assert refused == [False]  # while it was embedded, before anything was written
        db.execute("SELECT nv_embed.cut_over(id) FROM nv_embed.reembedding_status WHERE ended_at IS NULL")
        session.add(Doc(id=3, body="after"))
        session.commit()
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '30 s')")
        found = db.execute("SELECT concat(title, E'\\n', body), embedding::text FROM docs ORDER BY id").fetchall()
        for (_, stored), expected in zip(found, client.embed([told for told, _ in found], dim=512), strict=True):
            assert cosine(parsed(stored), expected) > 0.999


def test_a_flush_in_a_snapshot_from_before_a_cut_over_is_told_to_try_again(
    engine: sqlalchemy.Engine, connect: Connect, counter: Counter, url: str
) -> None:
    db = connect()
    with Session(engine.execution_options(isolation_level="REPEATABLE READ")) as session, working(plain(url), counter.address):
        embed_with(session, counter.address)
        session.add(Doc(id=1, body="text"))
        session.commit()
        ready(db, "storage => 'vector'")
        session.scalars(select(Doc.id)).all()
        session.connection().exec_driver_sql("SELECT 1")
        session.commit()
        session.scalar(text("SELECT 1"))
        db.execute("SELECT nv_embed.cut_over(id) FROM nv_embed.reembedding_status WHERE ended_at IS NULL")
        session.add(Doc(id=2, body="new"))
        with pytest.raises(sqlalchemy.exc.OperationalError) as raised:
            session.commit()
        assert raised.value.orig.sqlstate == "40001"  # type: ignore[union-attr]
        session.rollback()


@EXTENSION
def test_a_sidecar_that_serves_another_revision_is_refused_and_nothing_is_written(
    engine: sqlalchemy.Engine, connect: Connect, client: Client
) -> None:
    db = connect()
    db.execute("UPDATE nv_embed.generation SET revision = 'other'")
    with Session(engine) as session:
        embed_with(session, client)
        session.add(Doc(id=1, body="text"))
        with pytest.raises(UnknownModel, match="other"):
            session.commit()
    assert one(db, "SELECT count(*) FROM docs") == 0


def locked(db: Connection) -> bool:
    """Whether docs could be locked at once, as a cut-over does."""
    try:
        with db.transaction():
            db.execute("SET LOCAL lock_timeout = '50ms'")
            db.execute("LOCK docs IN ACCESS EXCLUSIVE MODE")
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def ready(db: Connection, change: str) -> None:
    """Bring a re-embedding of docs to where it can be cut over."""
    id = one(db, f"SELECT nv_embed.reembed('docs', {change})")
    deadline = time.monotonic() + 60
    while one(db, "SELECT nv_embed.advance_reembedding(%s)", [id]) != "ready":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def plain(url: str) -> str:
    """As psycopg reads it."""
    return url.replace("+psycopg", "")
