"""
Sessions that embed what they flush: one call, the right vectors, and what is left to the database.
"""

import enum
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import sqlalchemy
from conftest import Connection
from counting import Counter
from installs import BOTH, Install
from sqlalchemy import Computed, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from vectors import cosine
from workers import drain

from nv_embed.client import Client
from nv_embed.errors import InvalidInput, Overloaded
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
    own = [1.0] + [0.0] * 383
    with maker() as session:
        doc = Doc(id=1, body="text", embedding=own)
        session.add(doc)
        session.commit()
        assert doc.embedding == own
        doc.body, doc.embedding = "other", [0.0, *own[:-1]]
        session.commit()
        doc.body = "other"
        doc.hits = 2
        session.commit()
        assert doc.embedding == [0.0, *own[:-1]]
    assert counter.pages == []


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
    drain(url.replace("+psycopg", ""), counter.address)
    with maker() as session:
        assert_right(session, client, Odd.of_default, func.concat(Odd.stamp, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_number, func.concat(Odd.price, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_enum, func.concat(Odd.kind, " ", Odd.body), 1)
        assert_right(session, client, Odd.of_generated, Odd.shout, 1)
        assert_right(session, client, Odd.of_key, func.concat(Odd.id, " ", Odd.body), 1)
