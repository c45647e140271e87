-- verify: whether the next generation finds what is to be found, before anybody relies on it.
--
-- Two measures, beside that no row lacks its vector. The nearest neighbours of some rows, by the live vectors and by the next ones: vectors that were mixed
-- up, or made of other texts, share hardly any. And canaries: questions of which the owner knows what they are to find. Both search as nv_search does, by the
-- indexes that there are. What is too little is the owner's to say; without a floor both are measured and told.

CREATE OR REPLACE FUNCTION nv_embed.add_canary(relation regclass, target name, question text, VARIADIC key text[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    wanted CONSTANT bigint := (SELECT count(*) FROM nv_embed.key_columns(relation));
BEGIN
    PERFORM nv_embed.check_relation(relation);
    PERFORM nv_embed.check_canaries();
    IF question !~ '[^[:space:]]' IS NOT FALSE OR array_position(key, NULL) IS NOT NULL THEN
        RAISE EXCEPTION 'a canary is a question and the primary key of a row' USING ERRCODE = '22023', HINT = 'neither is null or blank';
    ELSIF cardinality(key) <> wanted THEN
        RAISE EXCEPTION 'the primary key of % has % columns, not %', nv_embed.qualified(relation), wanted, cardinality(key)
            USING ERRCODE = '22023', HINT = 'give each column of it as text';
    END IF;
    INSERT INTO nv_embed.canary (embedding, question, key) VALUES (e.id, question, key::text) ON CONFLICT DO NOTHING;
END
$$;

COMMENT ON FUNCTION nv_embed.add_canary(regclass, name, text, text[])
    IS 'Says that a question is to find the row with this primary key, each column of it as text, among the best ten; re-embeddings are measured by it.';

CREATE OR REPLACE FUNCTION nv_embed.drop_canaries(relation regclass, target name DEFAULT 'embedding', question text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_embedding(relation, target);
    dropped bigint;
BEGIN
    PERFORM nv_embed.check_relation(relation);
    DELETE FROM nv_embed.canary AS c WHERE c.embedding = e.id AND c.question = coalesce(drop_canaries.question, c.question);
    GET DIAGNOSTICS dropped = ROW_COUNT;
    RETURN dropped;
END
$$;

COMMENT ON FUNCTION nv_embed.drop_canaries(regclass, name, text) IS 'Forgets an embedding''s canaries, those of one question or all; returns how many.';

CREATE OR REPLACE FUNCTION nv_embed.check_measurable(e nv_embed.embedding, min_recall double precision) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF min_recall IS NOT NULL AND NOT EXISTS (SELECT FROM nv_embed.canary AS c WHERE c.embedding = e.id) THEN
        RAISE EXCEPTION 'there are no canaries to measure the recall of % by', nv_embed.qualified(e.relation)
            USING ERRCODE = '55000',
                HINT = format('SELECT nv_embed.add_canary(%L, %L, question, primary key of the row that it is to find)', nv_embed.qualified(e.relation), e.target);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_measurable(nv_embed.embedding, double precision) IS 'Raises an error for a min_recall without canaries.';

-- $1 is the vector, as wide as the generation's.
CREATE OR REPLACE FUNCTION nv_embed.nearest_sql(e nv_embed.embedding, g nv_embed.generation, k int, OUT statement text, OUT candidates bigint, OUT lists int)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    oversample CONSTANT real := 4;
    t record := nv_embed.find_searched((SELECT c.reltype FROM pg_class AS c WHERE c.oid = e.relation)::regtype, e.target, NULL, true);
    chosen record;
BEGIN
    t.g := g;
    SELECT * INTO chosen FROM nv_embed.choose_index(g, coalesce(g.chunks, e.relation), t.pgvector, NULL, true) AS i;
    candidates := nv_embed.candidates(k, oversample) * CASE chosen.storage WHEN 'bit' THEN 4 ELSE 1 END;
    lists := chosen.lists;
    statement := format(
        'SELECT ARRAY(SELECT %s FROM (SELECT (f.hit).* FROM (%s) AS f ORDER BY f.score DESC) AS h)', nv_embed.key_sql(e.relation, 'h'),
        nv_embed.search_sql(t, coalesce(chosen.storage, g.storage), coalesce(chosen.dim, g.dim), chosen.dim IS NULL, true, k, candidates, NULL)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.nearest_sql(nv_embed.embedding, nv_embed.generation, int)
    IS 'A statement: the keys of the rows whose vectors of a generation are nearest to $1, best first. As nv_search would find them were that live.';

CREATE OR REPLACE FUNCTION nv_embed.vector_sql(e nv_embed.embedding, g nv_embed.generation) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF g.chunks IS NULL THEN
        RETURN format('t.%I::%s.vector', g.target, nv_embed.pgvector_schema());
    END IF;
    RETURN format(
        '(SELECT c.%I::%s.vector FROM %s AS c WHERE %s AND c.seq OPERATOR(pg_catalog.=) 0)', g.target, nv_embed.pgvector_schema(), nv_embed.qualified(g.chunks),
        nv_embed.same_key_sql(e.relation, 'c', 't')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.vector_sql(nv_embed.embedding, nv_embed.generation) IS 'An SQL expression: a generation''s vector of a row t, of pieces the first one''s.';

CREATE OR REPLACE FUNCTION nv_embed.vectors_sql(e nv_embed.embedding, one nv_embed.generation, other nv_embed.generation) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Whole blocks are read, and of what they hold not only the first rows.
    RETURN format(
        'SELECT * FROM (SELECT %1$s AS key, %2$s AS one, %3$s AS other FROM %4$s AS t TABLESAMPLE SYSTEM (%5$s)) AS s'
        ' WHERE one IS NOT NULL AND other IS NOT NULL ORDER BY pg_catalog.random() LIMIT $1',
        nv_embed.key_sql(e.relation, 't'), nv_embed.vector_sql(e, one), nv_embed.vector_sql(e, other), nv_embed.qualified(e.relation),
        nv_embed.sampled_percent(e.relation)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.vectors_sql(nv_embed.embedding, nv_embed.generation, nv_embed.generation)
    IS 'A query: $1 rows of a table, each with its key and its vectors by two generations.';

-- A table without an index is compared as a whole for each row: some seconds are enough for what is a sample anyway.
CREATE OR REPLACE FUNCTION nv_embed.measure_overlap(e nv_embed.embedding, live nv_embed.generation, coming nv_embed.generation, OUT overlap double precision, OUT sampled int)
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
DECLARE
    k CONSTANT int := 10;
    most CONSTANT int := 100;
    until CONSTANT timestamptz := clock_timestamp() + interval '5 seconds';
    by_live CONSTANT record := nv_embed.nearest_sql(e, live, k + 1);
    by_coming CONSTANT record := nv_embed.nearest_sql(e, coming, k + 1);
    before CONSTANT text[] := nv_embed.set_scan(greatest(by_live.candidates, by_coming.candidates), greatest(by_live.lists, by_coming.lists), false, false);
    same bigint := 0;
    all_near bigint := 0;
    row record;
    one text[];
    other text[];
BEGIN
    sampled := 0;
    FOR row IN EXECUTE nv_embed.vectors_sql(e, live, coming) USING most LOOP
        EXECUTE by_live.statement INTO one USING nv_embed.unit(row.one);
        EXECUTE by_coming.statement INTO other USING nv_embed.unit(row.other);
        one := (array_remove(one, row.key))[1:k];
        same := same + (SELECT count(*) FROM unnest(one) AS u (key) WHERE u.key = ANY ((array_remove(other, row.key))[1:k]));
        all_near := all_near + cardinality(one);
        sampled := sampled + 1;
        EXIT WHEN clock_timestamp() > until;
    END LOOP;
    overlap := same::float8 / nullif(all_near, 0);
    PERFORM nv_embed.reset_scan(before);
END
$$;

COMMENT ON FUNCTION nv_embed.measure_overlap(nv_embed.embedding, nv_embed.generation, nv_embed.generation)
    IS 'Of the ten nearest neighbours of some rows by their live vectors, the share that is among the ten by those of another generation, and of how many rows.';

CREATE OR REPLACE FUNCTION nv_embed.measure_recall(e nv_embed.embedding, g nv_embed.generation, OUT recall double precision, OUT missed text[])
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
SET jit = off
AS $$
DECLARE
    k CONSTANT int := 10;
    search CONSTANT record := nv_embed.nearest_sql(e, g, k);
    before CONSTANT text[] := nv_embed.set_scan(search.candidates, search.lists, false, false);
    asked record;
    near text[];
    found bigint := 0;
    wanted bigint := 0;
BEGIN
    missed := '{}';
    FOR asked IN SELECT c.question, array_agg(c.key) AS keys FROM nv_embed.canary AS c WHERE c.embedding = e.id GROUP BY c.question ORDER BY c.question LOOP
        EXECUTE search.statement INTO near USING nv_embed.unit(nv_embed.embed_question(asked.question, g.dim, g.model, g.revision));
        wanted := wanted + cardinality(asked.keys);
        found := found + (SELECT count(*) FROM unnest(asked.keys) AS u (key) WHERE u.key = ANY (near));
        IF NOT asked.keys <@ near THEN
            missed := missed || asked.question;
        END IF;
    END LOOP;
    recall := found::float8 / nullif(wanted, 0);
    PERFORM nv_embed.reset_scan(before);
END
$$;

COMMENT ON FUNCTION nv_embed.measure_recall(nv_embed.embedding, nv_embed.generation)
    IS 'The share of an embedding''s canaries that a generation''s vectors find among the best ten, NULL where there are none; and the questions that miss any.';

CREATE OR REPLACE FUNCTION nv_embed.verify(r nv_embed.reembedding) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    -- Loads pgvector, whose settings are to be read.
    loaded CONSTANT int := nv_embed.width('[0]');
    declared CONSTANT record := nv_embed.declaration(r.from_generation);
    e CONSTANT nv_embed.embedding := declared.e;
    coming CONSTANT nv_embed.generation := (nv_embed.declaration(r.to_generation)).g;
    near CONSTANT record := nv_embed.measure_overlap(e, declared.g, coming);
    canaries CONSTANT record := nv_embed.measure_recall(e, coming);
    complaint CONSTANT text := concat_ws(
        ', ', CASE WHEN near.overlap < r.min_overlap THEN format('an overlap of %s is under %s', round(near.overlap::numeric, 3), r.min_overlap) END,
        CASE WHEN canaries.recall < r.min_recall THEN format('a recall of %s is under %s', round(canaries.recall::numeric, 3), r.min_recall) END
    );
BEGIN
    PERFORM nv_embed.check_measurable(e, r.min_recall);
    IF complaint <> '' THEN
        RAISE EXCEPTION 're-embedding % does not find what it is to find: %', r.id, complaint
            USING ERRCODE = '55000',
                DETAIL = concat_ws(
                    ' ', format('Overlap is %s, of the ten nearest of %s rows.', round(near.overlap::numeric, 3), near.sampled),
                    format('Canaries missed: %s.', (SELECT string_agg(quote_literal(u.question), ', ') FROM unnest(canaries.missed[1:5]) AS u (question)))
                ),
                HINT = format('if it is good enough, SELECT nv_embed.alter_reembedding(%s, min_overlap => …, min_recall => …); else nv_embed.cancel(%1$s)', r.id);
    END IF;
    UPDATE nv_embed.reembedding AS s SET overlap = near.overlap, recall = canaries.recall WHERE s.id = r.id;
END
$$;

COMMENT ON FUNCTION nv_embed.verify(nv_embed.reembedding) IS 'Measures the next generation, and raises an error where it is under the floors.';
