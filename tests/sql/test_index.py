"""
Indexes of prefixes and bits: how they are made, that searches use them, and that what they propose is ranked by the whole vectors.
"""

from collections.abc import Callable, Sequence

import numpy
import psycopg
import pytest
from conftest import Connection
from installs import BOTH, EXTENSION
from numpy.typing import NDArray
from pgvector import HalfVector
from vectors import one

pytestmark = EXTENSION  # the statements are the same in both installs: a few tests run on the library too

ROWS, DIM, PREFIX = 1500, 768, 384


@pytest.fixture(scope="module")
def vectors() -> "NDArray[numpy.float32]":
    """Unit vectors in groups, whose first components matter most, as those of a Matryoshka-trained model's."""
    random = numpy.random.default_rng(5)
    scale = (1 + numpy.arange(DIM)) ** -0.5
    made = random.standard_normal((30, DIM))[random.integers(30, size=ROWS)] * scale + random.standard_normal((ROWS, DIM)) * scale
    return (made / numpy.linalg.norm(made, axis=1, keepdims=True)).astype(numpy.float16).astype(numpy.float32)


def literal(vector: "NDArray[numpy.float32]") -> str:
    return str(vector.tolist())


def filled(db: Connection, vectors: "NDArray[numpy.float32]", table: str = "docs", storage: str = "halfvec", partition: str = "") -> None:
    db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text, kind int) {partition}")
    if partition:
        db.execute(f"CREATE TABLE {table}_a PARTITION OF {table} FOR VALUES FROM (0) TO (500) PARTITION BY RANGE (id)")
        db.execute(f"CREATE TABLE {table}_a_1 PARTITION OF {table}_a FOR VALUES FROM (0) TO (200)")
        db.execute(f"CREATE TABLE {table}_a_2 PARTITION OF {table}_a FOR VALUES FROM (200) TO (500)")
        db.execute(f"CREATE TABLE {table}_b PARTITION OF {table} FOR VALUES FROM (500) TO ({ROWS})")
    db.execute(f"SELECT nv_embed.auto_embed('{table}', '{{body}}', dim => {DIM}, mode => 'off', storage => '{storage}')")
    with db.cursor().copy(f"COPY {table} (id, body, kind, embedding) FROM STDIN WITH BINARY") as rows:
        rows.set_types(["int4", "text", "int4", "bytea"])
        for key, vector in enumerate(vectors):
            rows.write_row((key, "text", key % 100, HalfVector(vector).to_binary()))


@pytest.fixture
def docs(db: Connection, vectors: "NDArray[numpy.float32]") -> Connection:
    filled(db, vectors)
    return db


def nearest(vectors: "NDArray[numpy.float32]", query: "NDArray[numpy.float32]", k: int, among: Sequence[int] | None = None) -> list[int]:
    """By brute force, in double precision."""
    keys = numpy.arange(len(vectors)) if among is None else numpy.array(among)
    scores = vectors[keys].astype(float) @ query.astype(float) / numpy.linalg.norm(vectors[keys].astype(float), axis=1)
    return [int(key) for key in keys[numpy.argsort(-scores, kind="stable")[:k]]]


def beside(vectors: "NDArray[numpy.float32]", key: int) -> "NDArray[numpy.float32]":
    """A query near to a row, of what a halfvec can hold."""
    return (vectors[key] + 0.01).astype(numpy.float16).astype(numpy.float32)


def search(db: Connection, query: "NDArray[numpy.float32]", arguments: str = "", table: str = "docs") -> list[int]:
    statement = f"SELECT (hit).id FROM nv_search(NULL::{table}, %s::vector{arguments})"
    return [key for (key,) in db.execute(statement, [literal(query)]).fetchall()]


def plan(db: Connection, query: "NDArray[numpy.float32]", arguments: str = "", table: str = "docs") -> str:
    return "\n".join(
        line for (line,) in db.execute(f"SELECT nv_embed.explain_search(NULL::{table}, %s::vector{arguments})", [literal(query)]).fetchall()
    )


def make_index(db: Connection, arguments: str, table: str = "docs") -> str:
    statement: str = one(db, f"SELECT nv_embed.create_index_sql('{table}', {arguments}, concurrently => false)")
    db.execute(statement)
    return statement


@pytest.mark.parametrize(
    ("arguments", "holds"),
    [
        ("dim => 384", "(((public.subvector(embedding, 1, 384))::public.halfvec(384)) public.halfvec_cosine_ops)"),
        ("dim => 384, storage => 'vector'", "(((public.subvector(embedding, 1, 384))::public.vector(384)) public.vector_cosine_ops)"),
        ("dim => 768", "(embedding public.halfvec_cosine_ops)"),
        ("storage => 'vector'", "(((embedding)::public.vector(768)) public.vector_cosine_ops)"),
        ("storage => 'bit'", "(((public.binary_quantize(embedding))::bit(768)) public.bit_hamming_ops)"),
        ("dim => 384, storage => 'bit'", "(((public.binary_quantize(public.subvector(embedding, 1, 384)))::bit(384)) public.bit_hamming_ops)"),
        ("dim => 384, method => 'ivfflat'", "halfvec_cosine_ops) WITH (lists = 10)"),
        ("dim => 384, method => 'ivfflat', lists => 20", "halfvec_cosine_ops) WITH (lists = 20)"),
        ("dim => 384, m => 24, ef_construction => 100", "halfvec_cosine_ops) WITH (m = 24, ef_construction = 100)"),
    ],
)
def test_an_index_is_made_recognised_used_and_ranked_by_the_whole_vectors(
    docs: Connection, vectors: "NDArray[numpy.float32]", arguments: str, holds: str
) -> None:
    assert holds in make_index(docs, arguments)
    ((index, *_),) = docs.execute("SELECT index::text, is_valid FROM nv_embed.vector_indexes('docs')").fetchall()
    found = 0
    for key in range(0, ROWS, 100):
        query = beside(vectors, key)
        hits = docs.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, oversample => 10)", [literal(query)]).fetchall()
        for hit, score in hits:
            whole = vectors[hit].astype(float) @ query / numpy.linalg.norm(vectors[hit].astype(float)) / numpy.linalg.norm(query)
            assert score == pytest.approx(whole, abs=1e-3)
        found += len(set(nearest(vectors, query, 10)) & {hit for hit, _ in hits})
    assert found / 150 > 0.93
    assert f"Index Scan using {index}" in plan(docs, vectors[0])


def test_a_hand_written_query_of_the_documented_form_uses_the_index(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "dim => 384")
    docs.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
    rows = docs.execute(
        "EXPLAIN SELECT id FROM (SELECT id, embedding FROM docs ORDER BY subvector(embedding, 1, 384)::halfvec(384)"
        " <=> subvector(%(q)s::halfvec, 1, 384)::halfvec(384) LIMIT 40) AS near ORDER BY embedding <=> %(q)s::halfvec LIMIT 10",
        {"q": literal(vectors[0])},
    ).fetchall()
    assert any("Index Scan using docs_embedding_384_halfvec_hnsw" in line for (line,) in rows)


@BOTH
def test_without_an_index_a_search_is_exact(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    for key in range(0, ROWS, 300):
        assert search(docs, beside(vectors, key)) == nearest(vectors, beside(vectors, key), 10)


@BOTH
def test_an_exact_search_is_shared_by_several_processes(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    searching: list[int] = []
    docs.add_notice_handler(lambda said: searching.append(int(said.message_primary or 0)))
    docs.execute("""
        CREATE FUNCTION tells() RETURNS boolean LANGUAGE plpgsql STABLE PARALLEL SAFE
        AS $$ BEGIN RAISE NOTICE '%', pg_backend_pid(); RETURN true; END $$;
        SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0;
        SET LOCAL parallel_leader_participation = off
    """)
    assert search(docs, beside(vectors, 7), ", filter => 'tells()'") == nearest(vectors, beside(vectors, 7), 10)
    assert set(searching)
    assert docs.info.backend_pid not in searching


def test_a_prefix_alone_ranks_without_rescoring(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    query = beside(vectors, 7)
    expected = nearest(vectors[:, :PREFIX], query[:PREFIX], 10)
    assert search(docs, query, ", dim => 384, rescore => false") == expected
    (score,) = docs.execute(
        "SELECT score FROM nv_search(NULL::docs, %s::vector, k => 1, dim => 384, rescore => false)", [literal(query)]
    ).fetchone() or (0,)
    best = vectors[expected[0], :PREFIX].astype(float)
    assert score == pytest.approx(best @ query[:PREFIX] / numpy.linalg.norm(best) / numpy.linalg.norm(query[:PREFIX]), abs=1e-3)
    make_index(docs, "dim => 384")
    assert "Index Scan using docs_embedding_384_halfvec_hnsw" in plan(docs, query, ", rescore => false")


@BOTH
def test_bits_alone_rank_by_their_angle(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "storage => 'bit'")
    query = vectors[7]
    rows = docs.execute("SELECT (hit).id, score FROM nv_search(NULL::docs, %s::vector, k => 5, rescore => false)", [literal(query)]).fetchall()
    differing = ((vectors > 0) != (query > 0)).sum(axis=1)
    assert rows[0] == (7, pytest.approx(1))
    for key, score in rows:
        assert score == pytest.approx(numpy.cos(numpy.pi * differing[key] / DIM), abs=1e-6)
    assert [score for _, score in rows] == sorted((score for _, score in rows), reverse=True)


def test_the_narrowest_index_proposes_and_the_widest_ranks_alone(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    for arguments in ("storage => 'bit'", "dim => 768", "dim => 512", "dim => 384"):
        make_index(docs, arguments)
    assert "docs_embedding_384_halfvec_hnsw" in plan(docs, vectors[0])
    assert "docs_embedding_768_halfvec_hnsw" in plan(docs, vectors[0], ", rescore => false")
    assert "docs_embedding_512_halfvec_hnsw" in plan(docs, vectors[0], ", dim => 512")
    assert "docs_embedding_768_halfvec_hnsw" in plan(docs, vectors[0], ", dim => 768")


def test_a_partial_index_is_left_to_who_asks_for_its_dim(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    docs.execute("CREATE INDEX docs_some ON docs USING hnsw ((subvector(embedding, 1, 384)::halfvec(384)) halfvec_cosine_ops) WHERE kind = 3")
    assert "docs_some" not in plan(docs, vectors[0])
    assert search(docs, vectors[0]) == nearest(vectors, vectors[0], 10)
    docs.execute("SET LOCAL enable_sort = off")
    assert "Index Scan using docs_some" in plan(docs, vectors[0], ", dim => 384, filter => 'kind = 3'")


@pytest.mark.parametrize("arguments", ["dim => 384", "storage => 'bit'"])
@pytest.mark.parametrize("k", [10, 15, 100])
def test_a_selective_filter_keeps_k_rows(docs: Connection, vectors: "NDArray[numpy.float32]", arguments: str, k: int) -> None:
    """15 of 1,500 rows pass, through the index and beyond what it gives."""
    make_index(docs, arguments)
    passing = list(range(3, ROWS, 100))
    docs.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL hnsw.max_scan_tuples = 100")
    found = search(docs, vectors[0], f", k => {k}, filter => 'kind = 3'")
    assert (len(found), set(found) <= set(passing)) == (min(k, 15), True)
    assert k < 15 or found == nearest(vectors, vectors[0], 15, passing)


def test_a_filter_on_an_indexed_column_reads_no_other_vectors(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "dim => 384")
    docs.execute("CREATE INDEX docs_kind ON docs (kind); ANALYZE docs")
    explained = plan(docs, vectors[0], ", filter => 'kind = 3'")
    assert "docs_kind" in explained
    assert "Seq Scan" not in explained
    assert search(docs, vectors[0], ", filter => 'kind = 3'") == nearest(vectors, vectors[0], 10, range(3, ROWS, 100))


def test_a_filter_may_name_the_table_and_join_others(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    docs.execute("CREATE TABLE kinds (kind int PRIMARY KEY, name text)")
    docs.execute("INSERT INTO kinds SELECT n, CASE WHEN n = 3 THEN 'wanted' ELSE 'other' END FROM generate_series(0, 99) AS n")
    make_index(docs, "dim => 384")
    expected = nearest(vectors, vectors[0], 10, range(3, ROWS, 100))
    for condition in (
        "EXISTS (SELECT FROM kinds WHERE kinds.kind = docs.kind AND name = ''wanted'')",
        "kind IN (SELECT kind FROM kinds WHERE name = ''wanted'')",
        "public.docs.kind = (SELECT kind FROM kinds WHERE name = ''wanted'')",
    ):
        assert search(docs, vectors[0], f", filter => '{condition}'") == expected


def test_more_rows_than_the_index_gives_are_found_without_it(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "dim => 384")
    docs.execute("SET LOCAL hnsw.max_scan_tuples = 50")
    assert search(docs, vectors[0], ", k => 2147483647, oversample => 10000") == nearest(vectors, vectors[0], ROWS)


def test_equal_vectors_come_in_the_order_of_their_keys(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    docs.execute("UPDATE docs SET embedding = %s WHERE id >= 1000", [literal(vectors[0])])
    docs.execute("UPDATE docs SET kind = kind WHERE id = 1100")  # another place in the table
    assert search(docs, vectors[0], ", k => 40") == [0, *range(1000, 1039)]


@BOTH
def test_settings_of_the_session_are_as_they_were(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "dim => 384")
    shown = "SELECT current_setting('hnsw.ef_search'), current_setting('enable_sort'), current_setting('hnsw.iterative_scan'), current_setting('jit')"
    search(docs, vectors[0])
    docs.execute("SET hnsw.ef_search = 77; SET jit = on")
    before = docs.execute(shown).fetchall()
    search(docs, vectors[0], ", k => 100")
    with pytest.raises(psycopg.errors.DivisionByZero), docs.transaction():
        search(docs, vectors[0], ", filter => '1 / (id * 0) > 0'")
    assert docs.execute(shown).fetchall() == before == [("77", "on", "off", "on")]


def test_rows_of_every_partition_are_found_through_an_index(db: Connection, vectors: "NDArray[numpy.float32]") -> None:
    filled(db, vectors, partition="PARTITION BY RANGE (id)")
    make_index(db, "dim => 384")
    for key in range(0, ROWS, 300):
        assert len(set(search(db, vectors[key], ", oversample => 10")) & set(nearest(vectors, vectors[key], 10))) >= 9
    explained = plan(db, vectors[0])
    assert "Merge Append" in explained
    assert explained.count("Index Scan using") == 3


@BOTH
def test_a_partitioned_table_is_indexed_concurrently_and_the_steps_go_on_where_they_were(
    connect: Callable[..., Connection], vectors: "NDArray[numpy.float32]"
) -> None:
    db = connect()
    filled(db, vectors, partition="PARTITION BY RANGE (id)")
    steps = "SELECT nv_embed.create_index_steps('docs', dim => 384)"
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="this index takes 9 statements"):
        db.execute("SELECT nv_embed.create_index_sql('docs', dim => 384)")
    assert [" ".join(step.split()[:5]) for (step,) in db.execute(steps)] == [
        "CREATE INDEX docs_embedding_384_halfvec_hnsw ON ONLY",
        "CREATE INDEX docs_a_embedding_384_halfvec_hnsw ON ONLY",
        "CREATE INDEX CONCURRENTLY docs_b_embedding_384_halfvec_hnsw ON",
        "CREATE INDEX CONCURRENTLY docs_a_1_embedding_384_halfvec_hnsw ON",
        "CREATE INDEX CONCURRENTLY docs_a_2_embedding_384_halfvec_hnsw ON",
        "ALTER INDEX public.docs_a_embedding_384_halfvec_hnsw ATTACH PARTITION",
        "ALTER INDEX public.docs_a_embedding_384_halfvec_hnsw ATTACH PARTITION",
        "ALTER INDEX public.docs_embedding_384_halfvec_hnsw ATTACH PARTITION",
        "ALTER INDEX public.docs_embedding_384_halfvec_hnsw ATTACH PARTITION",
    ]
    while todo := db.execute(steps).fetchall():
        db.execute(todo[0][0])
    ((index, is_valid, size),) = db.execute("SELECT index::text, is_valid, bytes FROM nv_embed.vector_indexes('docs')").fetchall()
    assert (index, is_valid) == ("docs_embedding_384_halfvec_hnsw", True)
    assert size > ROWS * PREFIX * 2
    assert plan(db, vectors[0]).count("Index Scan using") == 3


def test_what_a_failed_build_left_is_dropped_first(connect: Callable[..., Connection], vectors: "NDArray[numpy.float32]") -> None:
    db, other = connect(), connect()
    filled(db, vectors)
    statement = one(db, "SELECT nv_embed.create_index_sql('docs', dim => 384)")
    db.execute("SET lock_timeout = '50ms'")
    with other.transaction():
        other.execute("UPDATE docs SET kind = 0 WHERE id = 0")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            db.execute(statement)
    db.execute("RESET lock_timeout")
    assert "Index Scan" not in plan(db, vectors[0])
    steps = [step for (step,) in db.execute("SELECT nv_embed.create_index_steps('docs', dim => 384)")]
    assert steps == ["DROP INDEX CONCURRENTLY public.docs_embedding_384_halfvec_hnsw", statement]
    for step in steps:
        db.execute(step)
    assert "Index Scan using docs_embedding_384_halfvec_hnsw" in plan(db, vectors[0])
    with pytest.raises(psycopg.errors.DuplicateTable, match="have this index already"):
        db.execute("SELECT nv_embed.create_index_sql('docs', dim => 384)")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("dim => 100", "was not trained for 100 dimensions"),
        ("dim => 1024", "holds 768 dimensions, not 1024"),
        ("method => 'btree'", "method 'btree' is unknown"),
        ("storage => 'int8'", "storage 'int8' is unknown"),
        ("target => 'other'", "not auto-embedded"),
    ],
)
def test_an_index_that_cannot_be_made_says_why(docs: Connection, arguments: str, says: str) -> None:
    with pytest.raises(psycopg.Error, match=says):
        docs.execute(f"SELECT nv_embed.create_index_sql('docs', {arguments})")


def test_more_dimensions_than_an_index_takes_are_refused_by_name(db: Connection) -> None:
    db.execute("CREATE TABLE wide (id int PRIMARY KEY, body text)")
    db.execute("SELECT nv_embed.auto_embed('wide', '{body}', mode => 'off')")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="an index holds 2000 dimensions of a vector at most, not 2048"):
        db.execute("SELECT nv_embed.create_index_sql('wide', storage => 'vector')")


def test_a_query_of_any_length_is_a_direction(docs: Connection, vectors: "NDArray[numpy.float32]") -> None:
    make_index(docs, "dim => 384")
    for length in (1e-10, 1e7):
        assert search(docs, vectors[3] * numpy.float32(length)) == search(docs, vectors[3])
    behind = numpy.concatenate([numpy.zeros(PREFIX), vectors[3, PREFIX:]]).astype(numpy.float16).astype(numpy.float32)
    assert search(docs, behind) == nearest(vectors, behind, 10)


def test_partitions_whose_long_names_differ_at_their_ends_get_indexes_of_their_own(
    connect: Callable[..., Connection], vectors: "NDArray[numpy.float32]"
) -> None:
    db = connect()
    table = "a_rather_long_table_name_for_documents_of_the_company"
    db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    for number in range(2):
        db.execute(f"CREATE TABLE {table}_{number} PARTITION OF {table} FOR VALUES FROM ({10 * number}) TO ({10 * number + 10})")
    db.execute(f"SELECT nv_embed.auto_embed('{table}', '{{body}}', dim => 768, mode => 'off')")
    taken = one(db, f"SELECT nv_embed.index_name('{table}', 'embedding', 384, 'halfvec', 'hnsw', NULL)")
    db.execute(f"CREATE TABLE {taken} ()")
    for (step,) in db.execute(f"SELECT nv_embed.create_index_steps('{table}', dim => 384)").fetchall():
        db.execute(step)
    assert db.execute(f"SELECT is_valid FROM nv_embed.vector_indexes('{table}')").fetchall() == [(True,)]


def test_names_that_need_quotes_and_are_long_are_no_obstacle(db: Connection, vectors: "NDArray[numpy.float32]") -> None:
    db.execute('CREATE TABLE "Order ""1"" of a name that is as long as Postgres allows, all 63" (id int PRIMARY KEY, "select" text)')
    table = '"Order ""1"" of a name that is as long as Postgres allows, all 63"'
    db.execute("SELECT nv_embed.auto_embed(%s, '{select}', 'Group', dim => 768, mode => 'off')", [table])
    db.execute(f"INSERT INTO {table} VALUES (1, %s, %s)", ["text", literal(vectors[0])])
    db.execute(one(db, "SELECT nv_embed.create_index_sql(%s, 'Group', dim => 384, concurrently => false)", [table]))
    assert len(db.execute("SELECT * FROM nv_embed.vector_indexes(%s, 'Group')", [table]).fetchall()) == 1
    assert one(db, f"SELECT (hit).id FROM nv_search(NULL::{table}, %s::vector, target => 'Group')", [literal(vectors[0])]) == 1


@pytest.mark.parametrize("arguments", ["dim => 384", "storage => 'bit'"])
def test_row_level_security_hides_rows_from_an_index_and_keeps_k(
    connect: Callable[..., Connection], vectors: "NDArray[numpy.float32]", arguments: str
) -> None:
    owner, caller = connect(), connect("app")
    filled(owner, vectors)
    make_index(owner, arguments)
    owner.execute("GRANT SELECT ON docs TO app; ALTER TABLE docs ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON docs USING (kind = 3)")
    visible = list(range(3, ROWS, 100))
    caller.execute("SET enable_seqscan = off; SET enable_sort = off; SET hnsw.max_scan_tuples = 100")
    for extra in ("", ", rescore => false, dim => 768", ", oversample => 20", ", filter => 'id >= 0'"):
        assert set(search(caller, vectors[0], f", k => 15{extra}")) == set(visible)
    assert search(caller, vectors[0], ", k => 15") == nearest(vectors, vectors[0], 15, visible)
    assert search(caller, vectors[0], ", filter => 'kind <> 3'") == []
    assert "rows" not in plan(caller, vectors[0]).lower()
    with pytest.raises(psycopg.Error) as raised:
        search(caller, vectors[0], ", filter => '(''row '' || id)::int > 0'")
    assert raised.value.diag.message_primary in {f'invalid input syntax for type integer: "row {key}"' for key in visible}


def test_rows_with_many_near_pieces_leave_room_for_others(db: Connection, vectors: "NDArray[numpy.float32]") -> None:
    """Ten rows of a hundred pieces each are nearer than those of the rest: more candidates are needed than were asked for at first."""
    db.execute("CREATE TABLE book (id int PRIMARY KEY, body text)")
    db.execute(f"SELECT nv_embed.auto_embed('book', '{{body}}', dim => {DIM}, mode => 'off', chunk_tokens => 12)")
    db.execute("INSERT INTO book SELECT n, repeat('x', 2000) FROM generate_series(0, 39) AS n")
    near, far = literal(vectors[0]), literal(vectors[0] * 0.5 + vectors[1])
    pieces = "INSERT INTO book_embedding_chunk SELECT b, p, p, p + 1, %s FROM generate_series(%s::int, %s) AS b, generate_series(0, %s) AS p"
    db.execute(pieces, [near, 0, 9, 99])
    db.execute(pieces, [far, 10, 39, 1])
    db.execute("ALTER TABLE book_embedding_chunk ALTER embedding SET STORAGE EXTERNAL")
    for arguments in ("", ", dim => 384", ", dim => 384, rescore => false"):
        assert search(db, vectors[0], f", k => 30{arguments}", "book") == list(range(30))
    make_index(db, "dim => 384", "book")
    assert "Index Scan using book_embedding_chunk_embedding_384_halfvec_hnsw" in plan(db, vectors[0], "", "book")
    assert search(db, vectors[0], ", k => 10", "book") == list(range(10))
    assert search(db, vectors[0], ", k => 40", "book") == list(range(40))
    assert search(db, vectors[0], ", k => 5, filter => 'id > 20'", "book") == list(range(21, 26))


@BOTH
def test_pieces_of_rows_that_a_role_may_not_see_are_not_searched(connect: Callable[..., Connection], vectors: "NDArray[numpy.float32]") -> None:
    owner, caller = connect(), connect("app")
    owner.execute("CREATE TABLE book (id int PRIMARY KEY, body text)")
    owner.execute(f"SELECT nv_embed.auto_embed('book', '{{body}}', dim => {DIM}, mode => 'off', chunk_tokens => 12)")
    owner.execute("INSERT INTO book SELECT n, 'text ' || n FROM generate_series(0, 99) AS n")
    for key in range(100):
        owner.execute("INSERT INTO book_embedding_chunk VALUES (%s, 0, 0, 5, %s)", [key, literal(vectors[key])])
    make_index(owner, "dim => 384", "book")
    owner.execute("GRANT SELECT ON book TO app; ALTER TABLE book ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON book USING (id % 10 = 3)")
    visible = list(range(3, 100, 10))
    assert search(caller, vectors[0], ", k => 50", "book") == nearest(vectors, vectors[0], 10, visible)
    caller.execute("SET enable_seqscan = off; SET enable_sort = off; SET hnsw.max_scan_tuples = 20")
    assert search(caller, vectors[0], ", k => 10", "book") == nearest(vectors, vectors[0], 10, visible)
    rows = caller.execute(
        "SELECT (hit).id, content FROM nv_hybrid_search(NULL::book, 'text', k => 50, embedding => %s)", [literal(vectors[0])]
    ).fetchall()
    assert {key for key, _ in rows} == set(visible)
