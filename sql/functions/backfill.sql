-- backfill: rows that a table had before it was declared.
--
-- A declaration of a large table leaves them to the workers, who queue them in steps along the primary key: no step holds a lock that anybody waits for,
-- and none takes long. Rows that are written meanwhile queue themselves, on whichever side of the step they are.
--
-- A step may also be somebody's own from the first: a range (`claim_range`), whose jobs come into the queue with a lease. There is one cursor for both, so no
-- row is handed out twice, and a range whose owner dies is what any other jobs are whose lease ran out.

CREATE OR REPLACE FUNCTION nv_embed.count_rows(generation bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    held CONSTANT regclass := nv_embed.hold_generation(generation);
    declared CONSTANT record := nv_embed.declaration(generation);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
BEGIN
    PERFORM nv_embed.check_sees_all(e.relation);
    -- One statement has one snapshot, so the rows counted and the differences told so far belong together, whoever writes meanwhile.
    EXECUTE format(
        $sql$
            INSERT INTO nv_embed.tally (generation, rows, blank, vectors)
            SELECT $1, c.rows - s.rows, c.blank - s.blank, c.vectors - s.vectors
            FROM (SELECT count(*) AS rows, count(*) FILTER (WHERE NOT (%1$s OR %2$s)) AS blank, count(*) FILTER (WHERE %3$s) AS vectors FROM %4$s AS t) AS c,
                (
                    SELECT coalesce(sum(rows), 0) AS rows, coalesce(sum(blank), 0) AS blank, coalesce(sum(vectors), 0) AS vectors
                    FROM nv_embed.tally WHERE generation = $1
                ) AS s
        $sql$,
        nv_embed.has_content(e.source, 't'), CASE WHEN g.chunks IS NULL THEN nv_embed.has_vector_sql(e, g, 't') ELSE 'false' END,
        nv_embed.has_vector_sql(e, g, 't'), nv_embed.qualified(e.relation)
    ) USING generation;
END
$$;

COMMENT ON FUNCTION nv_embed.count_rows(bigint) IS 'Makes the tally right by reading the whole table once, without a lock.';

CREATE OR REPLACE FUNCTION nv_embed.step_sql(e nv_embed.embedding, g nv_embed.generation, is_first boolean) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    columns CONSTANT text := (SELECT string_agg(format('t.%I', k.column_name), ', ' ORDER BY k.place) FROM nv_embed.key_columns(e.relation) AS k);
    places CONSTANT text := (SELECT string_agg('t.k' || k.place, ', ' ORDER BY k.place) FROM nv_embed.key_columns(e.relation) AS k);
BEGIN
    PERFORM nv_embed.check_sees_all(e.relation);
    RETURN format(
        'SELECT t.key, t.awaits, pg_catalog.row_number() OVER (ORDER BY %1$s) AS place FROM (%2$s) AS t (key, awaits, %3$s) ORDER BY %1$s LIMIT $3',
        places,
        (
            SELECT string_agg(
                format(
                    '(SELECT %1$s, NOT %2$s AND %3$s, %4$s FROM %5$s AS t WHERE %6$s ORDER BY %4$s LIMIT $3)', nv_embed.key_sql(e.relation, 't'),
                    nv_embed.has_vector_sql(e, g, 't'), nv_embed.has_content(e.source, 't'), columns, nv_embed.qualified(e.relation), r.condition
                ),
                ' UNION ALL '
            )
            FROM (SELECT '$2 IS NULL' AS condition WHERE is_first UNION ALL SELECT nv_embed.ranges_after(e.relation) WHERE NOT is_first) AS r
        ),
        replace(places, 't.', '')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.step_sql(nv_embed.embedding, nv_embed.generation, boolean)
    IS 'A query: the next rows in the order of the primary key, and whether they await a vector. $2 is the key after which to begin, $3 how many, NULL all.';

-- $1 is the generation, $4 the lease of what is queued, NULL for none. Only then are the jobs returned.
CREATE OR REPLACE FUNCTION nv_embed.backfill_sql(id bigint, is_first boolean) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
BEGIN
    RETURN format(
        $sql$
            WITH step AS MATERIALIZED (%s),
            queued AS (
                INSERT INTO nv_embed.job (generation, key, stale, leased_until)
                SELECT $1, key, false, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+) $4 FROM step WHERE awaits ORDER BY place
                ON CONFLICT (generation, key) DO NOTHING
                RETURNING key, id
            )
            SELECT (SELECT key FROM step ORDER BY place DESC LIMIT 1) AS after, (SELECT pg_catalog.count(*) FROM step) AS seen,
                (SELECT pg_catalog.count(*) FROM queued) AS queued,
                CASE WHEN $4 IS NOT NULL THEN ARRAY(SELECT key FROM queued ORDER BY id) END AS keys,
                CASE WHEN $4 IS NOT NULL THEN ARRAY(SELECT id FROM queued ORDER BY id) END AS ids
        $sql$,
        nv_embed.step_sql(declared.e, declared.g, is_first)
    );
END
$$;

COMMENT ON FUNCTION nv_embed.backfill_sql(bigint, boolean) IS 'A statement: queue those of the next rows, in the order of the primary key, that lack a vector.';

-- The table first: whoever has that for oneself, as a TRUNCATE, takes this row away.
CREATE OR REPLACE FUNCTION nv_embed.take_step(generation bigint) RETURNS nv_embed.backfill
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    b nv_embed.backfill;
BEGIN
    PERFORM nv_embed.hold_generation(generation);
    SELECT * INTO b FROM nv_embed.backfill AS s WHERE s.generation = take_step.generation FOR UPDATE SKIP LOCKED;
    IF NOT b.counted THEN
        PERFORM nv_embed.count_rows(generation);
        UPDATE nv_embed.backfill AS s SET counted = true WHERE s.generation = take_step.generation;
    END IF;
    RETURN b;
END
$$;

COMMENT ON FUNCTION nv_embed.take_step(bigint) IS 'How far a backfill is, locked; the first to take a step counts. NULL when there is nothing to do or somebody does it.';

CREATE OR REPLACE FUNCTION nv_embed.end_step(generation bigint, after text, is_last boolean, queued bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.tell(generation, 0, 0, 0, queued, 0);
    IF is_last THEN
        DELETE FROM nv_embed.backfill AS s WHERE s.generation = end_step.generation;
    ELSE
        UPDATE nv_embed.backfill AS s SET after = end_step.after WHERE s.generation = end_step.generation;
    END IF;
    RETURN queued;
END
$$;

COMMENT ON FUNCTION nv_embed.end_step(bigint, text, boolean, bigint) IS 'Writes down how far a backfill is; returns how many rows were queued.';

-- Cutting runs the user's triggers: no SET search_path, and every name with its schema.
CREATE OR REPLACE FUNCTION nv_embed.backfill_step(generation bigint, most int DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    b CONSTANT nv_embed.backfill := nv_embed.take_step(generation);
BEGIN
    IF NOT b.counted THEN
        RETURN 0;
    ELSIF b.counted AND (nv_embed.cut_from((nv_embed.declaration(generation)).g)).id IS NOT NULL THEN
        RETURN nv_embed.cut_step(generation, b.after);
    ELSIF b.counted THEN
        RETURN (nv_embed.queue_step(generation, b.after, most, NULL)).queued;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.backfill_step(bigint, int)
    IS 'Counts the rows of a table, or cuts or queues the next of them; returns how many it queued, NULL when there is nothing to do or somebody does it.';

CREATE OR REPLACE FUNCTION nv_embed.queue_step(
    generation bigint, after text, most int, lease interval, OUT queued bigint, OUT keys text[], OUT ids bigint[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    allowed CONSTANT int := nv_embed.allowance(generation, most);
    step record;
BEGIN
    queued := 0;
    IF allowed = 0 THEN
        RETURN;
    END IF;
    EXECUTE nv_embed.backfill_sql(generation, after IS NULL) INTO step USING generation, after, allowed, lease;
    queued := nv_embed.end_step(generation, step.after, step.seen < allowed, step.queued);
    keys := step.keys;
    ids := step.ids;
END
$$;

COMMENT ON FUNCTION nv_embed.queue_step(bigint, text, int, interval)
    IS 'Queues those of the next rows that lack a vector; how many, and with a lease the jobs themselves, which are the caller''s for so long.';

-- What is cut to size inside of the database needs no owner. Cutting runs the user's triggers: no SET search_path, and every name with its schema.
CREATE OR REPLACE FUNCTION nv_embed.claim_range(generation bigint, most int, lease interval, OUT keys text[], OUT ids bigint[], OUT is_last boolean)
LANGUAGE plpgsql
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    b CONSTANT nv_embed.backfill := nv_embed.take_step(generation);
BEGIN
    IF b.counted AND (nv_embed.cut_from((nv_embed.declaration(generation)).g)).id IS NOT NULL THEN
        PERFORM nv_embed.cut_step(generation, b.after);
    ELSIF b.counted THEN
        SELECT s.keys, s.ids INTO keys, ids FROM nv_embed.queue_step(generation, b.after, most, lease) AS s;
    END IF;
    keys := coalesce(keys, '{}');
    ids := coalesce(ids, '{}');
    is_last := NOT EXISTS (SELECT FROM nv_embed.backfill AS s WHERE s.generation OPERATOR(pg_catalog.=) claim_range.generation);
END
$$;

COMMENT ON FUNCTION nv_embed.claim_range(bigint, int, interval)
    IS 'Leases the next rows in the order of the primary key that lack a vector: their jobs, none where somebody else takes a step, where rows are cut or where the '
       'allowance is used up; and whether all rows that were there have been handed out.';

CREATE OR REPLACE FUNCTION nv_embed.queue_rows(generation bigint) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    held CONSTANT regclass := nv_embed.hold_generation(generation);
    step record;
BEGIN
    EXECUTE nv_embed.backfill_sql(generation, true) INTO step USING generation, NULL::text, NULL::bigint, NULL::interval;
    PERFORM nv_embed.tell(generation, 0, 0, 0, step.queued, 0);
    PERFORM nv_embed.wake();
    RETURN step.queued;
END
$$;

COMMENT ON FUNCTION nv_embed.queue_rows(bigint) IS 'Queues every row that lacks a vector and has content; returns how many it queued that were not queued already.';
