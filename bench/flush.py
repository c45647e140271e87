"""
What a flush costs that embeds its objects.

Some hundred objects with real texts are flushed and committed: by a session with a sidecar of its own, which embeds them in one call; by one without,
where the database's trigger does it; with a call for each object, as a `before_insert` event would have it; and without vectors at all. All in turns,
on one PostgreSQL and one sidecar.

    bench/flush.py [--model minilm] [--objects 500] [--rounds 7]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "tests")]

import sqlalchemy
from machine import report
from servers import running_cluster, running_sidecar, shared_folder
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from nv_embed.client import Client
from nv_embed.demo import corpus
from nv_embed.sqlalchemy import embed_with, embedded_column


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]
    embedding: Mapped[list[float] | None] = embedded_column("{body}", dim=384, truncate="END")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    texts = [entry.doc for entry in corpus.read() if entry.doc][: options.objects]
    with shared_folder() as folder, running_cluster(folder) as cluster, running_sidecar(folder, "--model", options.model) as sidecar:
        cluster.create_database("bench")
        engine = sqlalchemy.create_engine(cluster.dsn("bench").replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION nv_embed CASCADE"))
            connection.execute(text("SELECT nv_embed.configure(:at)"), {"at": sidecar.address})
        with Client(sidecar.address) as client:
            Base.metadata.create_all(engine)
            plain, own = sessionmaker(engine), sessionmaker(engine)
            embed_with(own, client)
            ways: dict[str, Callable[[], float]] = {
                "one call a flush (embed_with)": lambda: flush(own, texts),
                "the database's trigger": lambda: flush(plain, texts),
                "a call an object": lambda: flush(plain, texts, lambda doc: one_by_one(client, doc)),
                "no vectors": lambda: flush(plain, texts, mode="off"),
            }
            for way in ways.values():
                way()
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, way in ways.items():
                    times[name].append(way())
        engine.dispose()
    report(
        f"flush-{options.model}",
        f"{len(texts)} objects, documentation texts of {sum(map(len, texts)) / len(texts):.0f} characters, one flush; model {options.model}",
        times,
        ("a call an object", "one call a flush (embed_with)"),
    )


def flush(sessions: "sessionmaker[Session]", texts: list[str], prepare: Callable[[Doc], None] | None = None, mode: str | None = None) -> float:
    with sessions() as session:
        session.execute(text("TRUNCATE docs"))
        session.commit()
        if mode is not None:
            session.execute(text(f"SET LOCAL nv_embed.mode = '{mode}'"))
        begun = time.perf_counter()
        for body in texts:
            doc = Doc(body=body)
            if prepare is not None:
                prepare(doc)
            session.add(doc)
        session.commit()
        return time.perf_counter() - begun


def one_by_one(client: Client, doc: Doc) -> None:
    doc.embedding = client.embed([doc.body], dim=384, truncate="END")[0].tolist()


if __name__ == "__main__":
    main()
