"""
Re-embedding by a Ray Data job: a real cluster of several nodes on this machine, one of which is killed while it works.

`make ray` runs the killing with 200,000 rows.
"""

import os
import signal
import threading
import warnings
from collections import Counter as Sent
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import psycopg
import pytest
from conftest import Connection
from counting import Counter, counted
from installs import Install
from program import eventually
from servers import Sidecar, running_sidecar
from vectors import one
from workers import drain, working

from nv_embed.client import Client
from nv_embed.errors import InvalidInput
from nv_embed.reembed import Ended, Wanted

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray's own modules
    import ray
    from ray.cluster_utils import Cluster

    from nv_embed.ray import Failed, Settings, reembed
    from nv_embed.ray.actor import Filler

ROWS = int(os.environ.get("NV_EMBED_RAY_ROWS", "3000"))

LEASE_S = 6

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180 + ROWS // 100)]

AUDIT = """
    CREATE TABLE written (id int NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.{column} IS DISTINCT FROM OLD.{column} THEN
            INSERT INTO public.written (id) VALUES (NEW.id);
        END IF;
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER note AFTER UPDATE ON docs FOR EACH ROW EXECUTE FUNCTION note()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that has no room for actors, and two nodes that have."""
    made = Cluster()
    try:
        add_node(made, num_cpus=0, include_dashboard=False)
        for _ in range(2):
            add_node(made, num_cpus=2)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def add_node(nodes: Cluster, **options: Any) -> None:
    """Ray gives a node half a minute to start, whatever else the machine does; so it is asked some times."""
    for left in reversed(range(4)):
        try:
            nodes.add_node(object_store_memory=100 * 2**20, **options)
            return
        except Exception as error:
            if not left or "timed out" not in str(error).lower():
                raise


@pytest.fixture(scope="module")
def slow(folder: Path) -> Iterator[Sidecar]:
    with running_sidecar(folder, "--model", "fake", "--fake-delay-s", "0.05", name="slow.sock") as running:
        yield running


@pytest.fixture
def watched(slow: Sidecar) -> Iterator[Counter]:
    with counted(slow.address) as running:
        yield running


@pytest.fixture
def dsn(install: Install, own_database: str) -> str:
    return install.dsn(own_database)


@pytest.fixture
def db(connect: Callable[..., Connection]) -> Connection:
    connection = connect()
    connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    declare(connection, "docs", ROWS)
    return connection


def declare(db: Connection, table: str, rows: int) -> None:
    """The vectors that are live do not matter, so nobody makes them."""
    db.execute(f"INSERT INTO {table} SELECT n, 'body ' || n FROM generate_series(1, %s) AS n", [rows])
    db.execute(f"SELECT nv_embed.auto_embed('{table}', '{{body}}', dim => 384, mode => 'async')")


def column(db: Connection) -> str:
    return str(one(db, "SELECT target FROM nv_embed.generation WHERE state = 'next'"))


def differing(db: Connection, client: Client, dim: int = 512) -> int:
    """Of how many rows the next vector is not, to the bit, what the client gives for the text."""
    wrong = 0
    with db.transaction(), db.cursor("rows") as cursor:
        cursor.execute(f"SELECT body, halfvec_send({column(db)}) FROM docs")
        while rows := cursor.fetchmany(10_000):
            expected = client.embed([body for body, _ in rows], dim=dim)
            wrong += sum(found is None or found[4:] != vector.astype(">f2").tobytes() for (_, found), vector in zip(rows, expected, strict=True))
    return wrong


def actors_of(raylet: int) -> list[int]:
    """Processes that a node has started for a job's actors."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, line = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == raylet and "Filler" in line:
                found.append(int(entry.name))
    return found


def kill_one_that_works(nodes: Cluster, db: Connection, rows: int) -> None:
    """SIGKILL to a node, and to the actors that it has, once one of them holds rows and so many are written."""

    def victim() -> Any:
        beating = {int(name.rpartition(":")[2]) for (name,) in db.execute("SELECT name FROM nv_embed.worker")}
        return next((node for node in nodes.worker_nodes if beating & set(actors_of(raylet(node)))), None)

    assert eventually(lambda: one(db, "SELECT count(*) FROM written") >= rows and victim() is not None, 600)
    node = victim()
    actors = actors_of(raylet(node))
    # Between two turns nobody has any.
    assert eventually(lambda: one(db, "SELECT count(*) FROM nv_embed.job WHERE leased_until > now()") > 0)
    os.kill(raylet(node), signal.SIGKILL)
    for actor in actors:
        os.kill(actor, signal.SIGKILL)
    nodes.remove_node(node, allow_graceful=False)


def raylet(node: Any) -> int:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


def test_a_row_is_right_and_embedded_once_though_a_node_is_killed(nodes: Cluster, db: Connection, dsn: str, watched: Counter, client: Client) -> None:
    id = one(db, "SELECT nv_embed.reembed('docs', dim => 512)")
    db.execute(AUDIT.format(column=column(db)))
    errors: list[BaseException] = []

    def kill() -> None:
        try:
            kill_one_that_works(nodes, db, ROWS // 10)
        except (AssertionError, OSError, psycopg.Error) as error:  # seen below
            errors.append(error)

    killer = threading.Thread(target=kill)
    killer.start()
    settings = Settings(dsn, (watched.address,), actors=2, range_rows=max(ROWS // 20, 100), lease_s=LEASE_S, write_s=0.5)
    status = reembed(Wanted("docs", dim=512), settings)
    killer.join()

    assert not errors, errors
    assert (status.id, status.rows, status.embedded, status.failed) == (id, ROWS, ROWS, 0)
    assert status.state in ("indexing", "verifying")
    assert differing(db, client) == 0
    assert one(db, "SELECT count(*) FROM written") == one(db, "SELECT count(DISTINCT id) FROM written") == ROWS
    late = [key for key, at in db.execute("SELECT id, extract(epoch FROM at)::float8 FROM written") if watched.arrivals[f"body {key}"] > at]
    assert not late, "embedded again after they were written"


def test_any_key_a_partitioned_table_and_pieces_by_sidecars_of_the_actors_own(nodes: Cluster, connect: Callable[..., Connection], dsn: str) -> None:
    db = connect()
    db.execute("CREATE TABLE parts (lot text, number numeric, body text, PRIMARY KEY (lot, number)) PARTITION BY LIST (lot)")
    db.execute("CREATE TABLE parts_a PARTITION OF parts FOR VALUES IN ('a, \"b\"'); CREATE TABLE parts_rest PARTITION OF parts DEFAULT")
    lot = "CASE n % 2 WHEN 0 THEN 'a, \"b\"' ELSE 'c\\' END"
    db.execute(f"INSERT INTO parts SELECT {lot}, n / 7.0, repeat('one two three ', 20) || n FROM generate_series(1, 300) AS n")
    db.execute("SELECT nv_embed.auto_embed('parts', '{body}', dim => 384, mode => 'async')")

    settings = Settings(dsn, serve="fake", num_gpus=0, actors=1, range_rows=70)
    status = reembed(Wanted("parts", chunk_tokens=20), settings)

    assert (status.rows, status.embedded, status.failed) == (300, 300, 0)
    chunks = one(db, "SELECT chunks::regclass::text FROM nv_embed.generation WHERE state = 'next'")
    pieces = db.execute(f"SELECT count(DISTINCT (lot, number)), count(embedding), min(seq), max(seq) FROM {chunks}").fetchone()
    assert pieces is not None
    assert pieces[0] == 300
    assert pieces[3] > pieces[2]
    assert eventually(lambda: not own_sidecars()), own_sidecars()


def own_sidecars() -> list[str]:
    lines = [(entry / "cmdline").read_bytes() for entry in Path("/proc").iterdir() if entry.name.isdigit() and (entry / "cmdline").exists()]
    return [line.decode() for line in lines if b"/nv_embed-ray-" in line]


def test_beside_workers_and_traffic_nothing_is_embedded_twice(nodes: Cluster, db: Connection, dsn: str, watched: Counter, client: Client) -> None:
    drain(dsn, client.endpoint)
    one(db, "SELECT nv_embed.reembed('docs', dim => 512)")
    db.execute(AUDIT.format(column=column(db)))

    def change() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            if eventually(lambda: one(other, "SELECT count(*) FROM written") > 0, 60):
                other.execute("UPDATE docs SET body = 'changed ' || id WHERE id % 100 = 0")

    writer = threading.Thread(target=change)
    writer.start()
    with working(dsn, watched.address, lanes=1):
        reembed(Wanted("docs", dim=512), Settings(dsn, (watched.address,), range_rows=200))
        writer.join()
        assert eventually(lambda: not one(db, "SELECT bool_or(nv_embed.is_pending(id)) FROM nv_embed.generation"))

    assert one(db, "SELECT count(*) FROM docs WHERE starts_with(body, 'changed')") == ROWS // 100
    assert differing(db, client) == 0
    sent = Sent(text for page in watched.pages for text in page)
    assert all(count == 1 for text, count in sent.items() if text.startswith("body"))
    assert all(count == 2 for text, count in sent.items() if text.startswith("changed")), "once for each generation"


def test_an_actor_that_cannot_go_on_says_why_and_the_job_goes_on_when_it_is_called_again(
    nodes: Cluster, db: Connection, dsn: str, folder: Path, watched: Counter
) -> None:
    nowhere = f"unix:{folder / 'nowhere.sock'}"
    with pytest.raises(Failed, match=r"Unavailable: .*nowhere"):
        reembed(Wanted("docs", dim=512), Settings(dsn, (nowhere,), patience_s=0.5, range_rows=100))
    with pytest.raises(InvalidInput, match="is under way, to another dim"):
        reembed(Wanted("docs", dim=768), Settings(dsn, (watched.address,)))
    status = reembed(Wanted("docs", dim=512), Settings(dsn, (watched.address,)))
    assert (status.embedded, status.failed) == (ROWS, 0)


def test_a_job_whose_re_embedding_is_cancelled_meanwhile_says_so(nodes: Cluster, db: Connection, dsn: str, watched: Counter) -> None:
    def cancel() -> None:
        with psycopg.connect(dsn, autocommit=True) as other:
            assert eventually(lambda: watched.pages, 60)
            other.execute("SELECT nv_embed.cancel(id) FROM nv_embed.reembedding")

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(Ended, match="was cancelled: begin another one"):
        reembed(Wanted("docs", dim=512), Settings(dsn, (watched.address,), range_rows=100))
    canceller.join()


def test_an_actor_keeps_no_connections_of_lanes_to_an_endpoint_that_it_has_left(db: Connection, dsn: str, watched: Counter, client: Client) -> None:
    id = one(db, "SELECT nv_embed.reembed('docs', dim => 512)")
    generation = one(db, "SELECT id FROM nv_embed.generation WHERE state = 'next'")
    db.execute("SELECT nv_embed.backfill_step(%s)", [generation])
    actor = Filler(Settings(dsn, (watched.address, client.endpoint), lanes=1, range_rows=100), id, generation)
    connections = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nv-embed ray' AND datname = current_database()"
    for turn in range(3):
        answer = actor({"turn": numpy.array([turn])})
        assert (answer["embedded"][0], answer["error"][0]) == (100, "")
        assert eventually(lambda: one(db, connections) == 2), "of its own, and of the one lane"


def test_settings_say_what_is_wrong() -> None:
    with pytest.raises(InvalidInput, match="either endpoints to call or a sidecar of its own"):
        Settings("", ("127.0.0.1:1",), serve="fake")
    with pytest.raises(InvalidInput, match="at most 100000"):
        Settings("", ("127.0.0.1:1",), range_rows=100_001)
    assert "secret" not in repr(Settings("postgresql://me:secret@host/db", ("127.0.0.1:1",)))
