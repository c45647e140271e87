"""
From one model to another while a table is searched and written to: MiniLM's vectors to another model's, of another width, and back again.

`make reembedding` runs it with 20,000 rows.
"""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg
import pytest
from conftest import Connection
from installs import Install
from program import Program, succeeded
from servers import Sidecar, running_sidecar
from vectors import cosine, one, parsed

from nv_embed.client import Client
from nv_embed.demo import corpus
from nv_embed.worker import Settings, Worker

pytestmark = [pytest.mark.minilm, pytest.mark.slow]

ROWS = int(os.environ.get("NV_EMBED_REEMBED_ROWS", "400"))
PROBE = 9
"""The row that is searched for, and that nobody changes."""


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[Sidecar]:
    """Two models in one sidecar."""
    with running_sidecar(folder, "--model", "minilm", "--model", "fake", name="both.sock") as running:
        yield running


@dataclass
class Traffic:
    """Searches and changes, until it is over.

    Attributes:
        asked: by model, the vector of the probe's text.
        searches: by model, how many found it.
    """

    asked: dict[str, str]
    over: threading.Event = field(default_factory=threading.Event)
    searches: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    failures: list[Exception] = field(default_factory=list)

    def search(self, db: Connection) -> None:
        """The model and the row are of one snapshot, as nv_search() by a text has them."""
        with db.transaction():
            db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            db.execute("SET LOCAL hnsw.ef_search = 1000")  # as good as exact: a graph may miss a row
            model = one(db, "SELECT model FROM nv_embed.generation WHERE state = 'live'")
            found = db.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, k => 1)", [self.asked[model]]).fetchone()
        assert found == (PROBE, pytest.approx(1, abs=2e-3)), (model, found)
        self.searches[model] = self.searches.get(model, 0) + 1

    def search_in_words(self, db: Connection) -> None:
        found = db.execute("SELECT (hit).id FROM nv_search(NULL::docs, (SELECT body FROM docs WHERE id = %s), k => 3)", [PROBE]).fetchall()
        assert len(found) == 3

    def write(self, db: Connection) -> None:
        number = next(self.numbers)
        key = PROBE + 1 + number % (ROWS - PROBE - 1)
        match number % 4:
            case 0:
                db.execute("INSERT INTO docs VALUES (%s, %s)", [ROWS + 1 + number, f"What came later, number {number}"])
            case 1:
                db.execute("UPDATE docs SET body = body || ' More.' WHERE id = %s", [key])
            case 2:
                db.execute("UPDATE docs SET body = NULL WHERE id = %s", [key])
            case _:
                db.execute("DELETE FROM docs WHERE id = %s", [key])

    def run(self, work: Callable[[Connection], None], db: Connection) -> None:
        try:
            while not self.over.wait(0.01):
                work(db)
        except (AssertionError, psycopg.Error) as error:
            self.failures.append(error)
            self.over.set()


def right(db: Connection, client: Client) -> int:
    """How many rows hold the vector that the live model has for just their text; fails on one that holds another's, or none."""
    live = db.execute("SELECT model, dim FROM nv_embed.generation WHERE state = 'live'").fetchone()
    assert live is not None
    model, dim = live
    rows = db.execute("SELECT id, body, embedding::text FROM docs WHERE body ~ '[^[:space:]]'").fetchall()
    expected = client.embed([body for _, body, _ in rows], model=model, dim=dim)
    for (key, _, stored), vector in zip(rows, expected, strict=True):
        found = parsed(stored)
        assert found is not None, key
        assert cosine(found, vector) > 0.999, key
    assert one(db, "SELECT count(*) FROM docs WHERE embedding IS NOT NULL") == len(rows)
    return len(rows)


def test_a_table_changes_its_model_under_traffic_and_goes_back(
    own_database: str, install: Install, connect: Callable[..., Connection], both: Sidecar, tmp_path: Path
) -> None:
    db, url, program = connect(), install.dsn(own_database), Program(tmp_path)
    db.execute("SELECT nv_embed.configure(%s)", [both.address])
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('docs', '{body}', mode => 'async')")
    texts = [entry.doc for entry in corpus.read()]
    with db.cursor().copy("COPY docs (id, body) FROM STDIN") as rows:
        for key in range(1, ROWS + 1):
            rows.write_row((key, f"{key}. {texts[key % len(texts)][:300]}"))
    worker = Worker(Settings(url, (both.address,), timeout_s=60.0))
    working = threading.Thread(target=worker.run)
    working.start()
    try:
        assert one(db, "SELECT nv_embed.wait('docs', timeout => '20 min')")
        db.execute(one(db, "SELECT nv_embed.create_index_sql('docs', concurrently => false)"))
        probe = one(db, "SELECT body FROM docs WHERE id = %s", [PROBE])
        with Client(both.address) as client:
            models = [model.name for model in client.list_models()]
            traffic = Traffic({name: str(client.embed([probe], model=name)[0].tolist()) for name in models})
            threads = [
                threading.Thread(target=traffic.run, args=(work, connect()))
                for work in (traffic.search, traffic.search, traffic.search_in_words, traffic.write, traffic.write)
            ]
            for thread in threads:
                thread.start()
            try:
                succeeded(program("reembed", "docs", "--model", "fake", "--yes", "--database-url", url, timeout_s=1200))
                traffic.over.wait(1)
                succeeded(program("roll-back", "docs", "--database-url", url))
                traffic.over.wait(1)
                assert not traffic.over.is_set(), traffic.failures
                succeeded(program("finish", "docs", "--database-url", url))
                succeeded(program("reembed", "docs", "--model", "fake", "--yes", "--database-url", url, timeout_s=1200))
                traffic.over.wait(1)
                succeeded(program("finish", "docs", "--database-url", url))
            finally:
                traffic.over.set()
                for thread in threads:
                    thread.join(60)
            assert traffic.failures == []
            assert all(traffic.searches.get(name, 0) > 10 for name in models), traffic.searches
            assert one(db, "SELECT nv_embed.wait('docs', timeout => '2 min')")
            assert right(db, client) > ROWS / 2
    finally:
        worker.stop()
        working.join(60)
