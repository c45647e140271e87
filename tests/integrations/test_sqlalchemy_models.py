"""
Every way to map a table: each is created with its embedding, flushed with its vectors, and searched.
"""

import uuid
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy
import pgvector
import pytest
import sqlalchemy
from counting import Counter
from installs import BOTH, Install
from pgvector.psycopg import register_vector
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, Text, event, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, Session, mapped_column, registry, sessionmaker
from sqlmodel import Field, SQLModel
from vectors import cosine

from nv_embed.client import Client
from nv_embed.errors import InvalidInput
from nv_embed.sqlalchemy import AutoEmbedding, Embedded, Embedding, EmbeddingIndex, declared, embed_with, embedded_column, search, vector

pytestmark = BOTH


@pytest.fixture
def engine(install: Install, own_database: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(install.dsn(own_database).replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    engine.dispose()


class Base(DeclarativeBase):
    pass


class Embeddable:
    """A mixin."""

    body: Mapped[str]
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=384, indexes=[EmbeddingIndex(384)])


class OfMixin(Embeddable, Base):
    __tablename__ = "of_mixin"
    id: Mapped[int] = mapped_column(primary_key=True)


class Dataclassed(MappedAsDataclass, DeclarativeBase):
    pass


class OfDataclass(Dataclassed):
    __tablename__ = "of_dataclass"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    body: Mapped[str]
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=384, init=False)


class Composite(Base):
    __tablename__ = "100% composite"
    first: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    second: Mapped[str] = mapped_column("Second % key", primary_key=True)
    body: Mapped[str] = mapped_column("The body")
    embedding: Mapped[list[float] | None] = embedded_column("{The body}", dim=384, name="Its vector")


class Person(Base):
    """Joined inheritance, the vector in the base's table; and a single-table subclass."""

    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    body: Mapped[str]
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=384)
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)
    skill: Mapped[str]
    skill_embedding: Mapped[list[float] | None] = embedded_column("{skill}", dim=384)
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "engineer"}


class Guest(Person):
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "guest"}


class OfSQLModel(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    body: str
    embedding: list[float] | None = Field(default=None, sa_type=Embedded("{body}", dim=384))  # type: ignore[call-overload]


class Imperative:
    def __init__(self, body: str) -> None:
        self.body = body


imperative = registry()
table = Table(
    "imperative",
    imperative.metadata,
    Column("id", Integer, primary_key=True),
    Column("body", Text),
    Column("embedding", Embedded("{body}", dim=384, storage="vector")),
    schema="Other schema",
)
imperative.map_imperatively(Imperative, table)


@pytest.mark.parametrize(
    ("make", "metadata"),
    [
        (lambda body: OfMixin(body=body), OfMixin.metadata),
        (lambda body: OfDataclass(body), OfDataclass.metadata),
        (lambda body: Composite(second="b", body=body), Composite.metadata),
        (lambda body: Person(body=body), Person.metadata),
        (lambda body: Guest(body=body), Person.metadata),
        (lambda body: Engineer(body=body, skill="lathes"), Person.metadata),
        (lambda body: OfSQLModel(body=body), SQLModel.metadata),
        (lambda body: Imperative(body), imperative.metadata),
    ],
    ids=["mixin", "dataclass", "composite key", "inheritance", "single table", "joined table", "SQLModel", "imperative and schema"],
)
def test_a_mapped_class_is_created_flushed_changed_and_found(
    make: Callable[[str], Any], metadata: MetaData, engine: sqlalchemy.Engine, counter: Counter, client: Client
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "Other schema"')
    metadata.create_all(engine)
    with sessionmaker(engine)() as session:
        embed_with(session, counter.address)
        objects = [make(f"body {n}") for n in range(5)]
        cls = type(objects[0])
        session.add_all(objects)
        session.commit()
        objects[3].body = "another"
        session.commit()
        first, second = ({*page} - {"lathes"} for page in counter.pages)
        assert (first, second) == ({f"body {n}" for n in range(5)}, {"another"})
        for each in objects:
            assert cosine(each.embedding, client.embed([each.body], dim=384)[0]) > 0.999
        target = "Its vector" if cls is Composite else "embedding"
        asked = client.embed(["another"], dim=384)[0].tolist()
        (found, score), *others = session.execute(search(cls, asked, k=3, target=target)).all()
        assert (found is objects[3], len(others)) == (True, 2)
        assert score > 0.999
        assert session.scalars(select(cls).order_by(cls.embedding.similar_to(asked)).limit(1)).all() == [objects[3]]
    metadata.drop_all(engine)


def test_tables_are_created_with_their_embeddings_and_indexes_and_dropped_with_their_pieces(engine: sqlalchemy.Engine) -> None:
    metadata = MetaData()
    pieces = Embedding("{body}", "passages", chunk_tokens=64, chunk_overlap=8, mode="async")
    vectors = Embedded("{body}", dim=768, mode="async", indexes=[EmbeddingIndex(384, m=8), EmbeddingIndex(storage="bit")])
    made = Table("docs", metadata, Column("id", Integer, primary_key=True), Column("body", Text), Column("embedding", vectors), AutoEmbedding(pieces))
    copy = made.to_metadata(MetaData())
    assert list(declared(copy)) == list(declared(made)) == ["embedding", "passages"]
    for tables in (metadata, copy.metadata):
        tables.create_all(engine)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT target, source, mode, chunk_tokens, chunk_overlap FROM nv_embed.embedding ORDER BY target")).all()
            assert found == [("embedding", "{body}", "async", None, 0), ("passages", "{body}", "async", 64, 8)]
            indexes = connection.execute(text("SELECT dim, storage FROM nv_embed.vector_indexes('docs') ORDER BY dim")).all()
            assert indexes == [(384, "halfvec"), (768, "bit")]
        tables.drop_all(engine)
        assert inspect(engine).get_table_names() == []


@pytest.mark.parametrize(
    "given", [[1.0, 0.5], numpy.array([1, 0.5], "float32"), pgvector.HalfVector([1.0, 0.5]), pgvector.Vector([1.0, 0.5]), "[1,0.5]", (1, 0.5)]
)
def test_a_vector_is_a_list_whatever_a_driver_gives(given: Any) -> None:
    assert vector.read(given) == [1.0, 0.5]
    assert vector.read(vector.written(given)) == [1.0, 0.5]


def test_a_driver_with_pgvectors_adapters_gives_lists_too(engine: sqlalchemy.Engine) -> None:
    event.listen(engine, "connect", lambda connection, _: register_vector(connection))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(OfMixin(body="text", embedding=numpy.arange(384)))
        session.commit()
        assert session.scalars(select(OfMixin.embedding)).all() == [list(range(384))]
        assert session.scalar(text("SELECT embedding FROM of_mixin")) == pgvector.HalfVector([float(n) for n in range(384)])


def test_what_is_declared_wrongly_is_told_at_once() -> None:
    with pytest.raises(InvalidInput, match="storage 'bit' is unknown"):
        Embedded("{body}", dim=384, storage="bit")
    with pytest.raises(InvalidInput, match=r"Engineer has more than one embedding, or none .*target is one of "):
        search(Engineer, "question")
    with pytest.raises(InvalidInput, match="OfMixin has no embedding 'other'"):
        search(OfMixin, "question", target="other")
    with pytest.raises(InvalidInput, match="385 is not a number of dimensions"):
        OfMixin.embedding.similar_to("question", dim=385)
