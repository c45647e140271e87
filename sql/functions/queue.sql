-- queue: from what a statement wrote to jobs.
--
-- One statement trigger an event looks at the rows that were written, queues those that await a vector, and tells the tally what changed. It runs with the
-- rights of its owner, because nobody else may write jobs. So it must evaluate nothing that a user could have made: texts and keys are formed by
-- pg_catalog.concat, which calls a type's own output function and never a cast, and compared as texts or as bytes. A trigger that was not made by
-- `auto_embed` is refused: its table's name for the rows written could be anything.
--
-- Old and new rows of an UPDATE are paired by their order in the transition tables, not by key: the key itself may have changed.

CREATE OR REPLACE FUNCTION nv_embed.effective_mode(declared text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mode CONSTANT text := coalesce(nullif(current_setting('nv_embed.mode', true), ''), declared);
BEGIN
    IF mode NOT IN ('sync', 'async', 'off') THEN
        RAISE EXCEPTION 'nv_embed.mode is %', quote_literal(mode)
            USING ERRCODE = '22023', HINT = 'it is one of sync, async and off; RESET nv_embed.mode gives back what was declared';
    END IF;
    IF mode = 'sync' THEN
        PERFORM nv_embed.check_sync();
    END IF;
    RETURN mode;
END
$$;

COMMENT ON FUNCTION nv_embed.effective_mode(text) IS 'The mode of this transaction: what SET LOCAL nv_embed.mode says, else what was declared.';

-- What an event says of each row: its key; whether it awaits a vector; whether whatever it awaited is settled, because it brought its vector or has no
-- content any more. An update's row is moved when its key changed, and cleared when its vector became NULL: both may leave a job that is wrong by now.
--
-- Pieces are no part of the row, and their vectors are told by the chunk table itself. `unchunk_sql` says which of them an update leaves: none of a row
-- that moved or is blank, and those of another text only for a worker to replace. Where there is none, what the row awaits comes with the statement in
-- mode sync; in any case its job is touched, because it is the lock on the pieces.
CREATE OR REPLACE FUNCTION nv_embed.seen_sql(e nv_embed.embedding, g nv_embed.generation, event text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN CASE event
        WHEN 'insert' THEN format(
            'SELECT %s AS key, %s AS has_vector, NOT %s AS is_blank FROM new_rows AS n',
            nv_embed.key_sql(e.relation, 'n'), CASE WHEN g.chunks IS NULL THEN nv_embed.has_vector_sql(e, g, 'n') ELSE 'false' END,
            nv_embed.has_content(e.source, 'n')
        )
        WHEN 'update' THEN format(
            CASE WHEN g.chunks IS NULL THEN $sql$
                SELECT *,
                    key <> old_key AS is_moved,
                    had_vector AND NOT has_vector AS is_cleared,
                    is_new_vector AND has_vector OR is_blank AND NOT has_vector AS is_settled,
                    is_new_text AND NOT is_new_vector AND (has_vector OR NOT is_blank) OR had_vector AND NOT has_vector AND NOT is_blank AS awaits
                FROM (
                    SELECT %1$s AS key, %2$s AS old_key,
                        %3$s <> %4$s AS is_new_text,
                        NOT record_image_eq(ROW(n.%8$I), ROW(o.%8$I)) AS is_new_vector,
                        n.%8$I IS NOT NULL AS has_vector, o.%8$I IS NOT NULL AS had_vector,
                        NOT %5$s AS is_blank, NOT %6$s AS was_blank
                    FROM %7$s
                ) AS pair
            $sql$ ELSE $sql$
                SELECT *,
                    key <> old_key AS is_moved,
                    had_vector AND NOT has_vector OR is_new_text AND $2 <> 'async' AS is_cleared,
                    is_blank OR $2 = 'sync' AND (is_new_text OR key <> old_key) AS is_settled,
                    NOT is_blank AND (is_new_text OR had_vector AND NOT has_vector) AS awaits
                FROM (
                    SELECT *, has_pieces AND NOT was_blank AS had_vector,
                        has_pieces AND key = old_key AND NOT is_blank AND (NOT is_new_text OR $2 = 'async') AS has_vector
                    FROM (
                        SELECT %1$s AS key, %2$s AS old_key, %3$s <> %4$s AS is_new_text, NOT %5$s AS is_blank, NOT %6$s AS was_blank, %8$s AS has_pieces
                        FROM %7$s
                    ) AS pair
                ) AS pair
            $sql$ END,
            nv_embed.key_sql(e.relation, 'n'), nv_embed.key_sql(e.relation, 'o'), nv_embed.rendered(e.source, 'n'), nv_embed.rendered(e.source, 'o'),
            nv_embed.has_content(e.source, 'n'), nv_embed.has_content(e.source, 'o'), nv_embed.pairs_sql(),
            CASE WHEN g.chunks IS NULL THEN g.target ELSE nv_embed.has_vector_sql(e, g, 'o') END
        )
        WHEN 'delete' THEN format(
            'SELECT %s AS key, %s AS had_vector, NOT %s AS was_blank FROM old_rows AS o',
            nv_embed.key_sql(e.relation, 'o'), CASE WHEN g.chunks IS NULL THEN nv_embed.has_vector_sql(e, g, 'o') ELSE 'false' END,
            nv_embed.has_content(e.source, 'o')
        )
    END;
END
$$;

COMMENT ON FUNCTION nv_embed.seen_sql(nv_embed.embedding, nv_embed.generation, text) IS 'A query: what an event''s transition tables say of each row.';

-- queue_sql: a statement with two parameters, the generation and the mode. It returns the differences for the tally, how many
-- rows were queued, and how many were left to `requeue_moved_rows`. A row that waits already goes to the end of the queue as if it were new.
CREATE OR REPLACE FUNCTION nv_embed.queue_sql(e nv_embed.embedding, g nv_embed.generation, event text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN format(
        CASE event
            WHEN 'insert' THEN $sql$
                WITH seen AS MATERIALIZED (%s),
                queued AS (
                    INSERT INTO nv_embed.job AS j (generation, key, stale)
                    SELECT $1, key, false FROM seen WHERE $2 = 'async' AND NOT has_vector AND NOT is_blank
                    ON CONFLICT (generation, key) DO UPDATE SET %s
                    RETURNING j.xmax = 0 AS is_new
                )
                SELECT s.*, q.*, 0 AS stale, 0 AS rare
                FROM (
                        SELECT count(*) AS rows, count(*) FILTER (WHERE is_blank AND NOT has_vector) AS blank, count(*) FILTER (WHERE has_vector) AS vectors
                        FROM seen
                    ) AS s,
                    (SELECT count(*) AS queued, count(*) FILTER (WHERE is_new) AS jobs FROM queued) AS q
            $sql$
            WHEN 'update' THEN $sql$
                WITH seen AS MATERIALIZED (%s),
                settled AS (
                    DELETE FROM nv_embed.job AS j USING seen AS s
                    WHERE j.generation = $1 AND j.key = s.key AND s.is_settled AND NOT s.is_moved AND NOT s.is_cleared
                    RETURNING j.stale
                ),
                queued AS (
                    INSERT INTO nv_embed.job AS j (generation, key, stale)
                    SELECT $1, key, has_vector FROM seen WHERE $2 = 'async' AND awaits AND NOT is_moved AND NOT is_cleared
                    ON CONFLICT (generation, key) DO UPDATE SET %s
                    RETURNING j.xmax = 0 AS is_new, j.stale
                )
                SELECT 0 AS rows, s.*, q.queued, q.jobs - d.jobs AS jobs, q.stale - d.stale AS stale
                FROM (
                        SELECT count(*) FILTER (WHERE is_blank AND NOT has_vector) - count(*) FILTER (WHERE was_blank AND NOT had_vector) AS blank,
                            count(*) FILTER (WHERE has_vector) - count(*) FILTER (WHERE had_vector) AS vectors,
                            count(*) FILTER (WHERE is_moved OR is_cleared) AS rare
                        FROM seen
                    ) AS s,
                    (
                        SELECT count(*) AS queued, count(*) FILTER (WHERE is_new) AS jobs, count(*) FILTER (WHERE is_new AND stale) AS stale FROM queued
                    ) AS q,
                    (SELECT count(*) AS jobs, count(*) FILTER (WHERE stale) AS stale FROM settled) AS d
            $sql$
            WHEN 'delete' THEN $sql$
                WITH seen AS MATERIALIZED (%s),
                settled AS (DELETE FROM nv_embed.job AS j USING seen AS s WHERE j.generation = $1 AND j.key = s.key RETURNING j.stale)
                SELECT s.*, d.*, 0 AS queued, 0 AS rare
                FROM (
                        SELECT -count(*) AS rows, -count(*) FILTER (WHERE was_blank AND NOT had_vector) AS blank, -count(*) FILTER (WHERE had_vector) AS vectors
                        FROM seen
                    ) AS s,
                    (SELECT -count(*) AS jobs, -count(*) FILTER (WHERE stale) AS stale FROM settled) AS d
            $sql$
        END,
        nv_embed.seen_sql(e, g, event),
        'id = excluded.id, queued_at = excluded.queued_at, leased_until = NULL, attempts = 0, retry_at = NULL, history = NULL'
    );
END
$$;

COMMENT ON FUNCTION nv_embed.queue_sql(nv_embed.embedding, nv_embed.generation, text) IS 'A statement: queue and settle what an event''s transition tables hold, and say what changed.';

-- Jobs of rows that have another key now, or lost their vector: taken away by their old keys first, then queued by the new ones, in two statements
-- because keys may go from row to row.
CREATE OR REPLACE FUNCTION nv_embed.requeue_sql(e nv_embed.embedding, g nv_embed.generation) RETURNS text[]
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN ARRAY[
    format(
        $sql$
            WITH seen AS MATERIALIZED (%s),
            gone AS (
                DELETE FROM nv_embed.job AS j USING seen AS s
                WHERE j.generation = $1 AND j.key = s.old_key AND (s.is_moved OR s.is_cleared)
                RETURNING j.stale, s.key, s.is_settled
            )
            SELECT array_agg(key) FILTER (WHERE NOT is_settled) AS awaiting, count(*) AS jobs, count(*) FILTER (WHERE stale) AS stale FROM gone
        $sql$,
        nv_embed.seen_sql(e, g, 'update')
    ),
    format(
        $sql$
            WITH seen AS MATERIALIZED (%s),
            queued AS (
                INSERT INTO nv_embed.job AS j (generation, key, stale)
                SELECT $1, key, has_vector FROM seen
                WHERE (is_moved OR is_cleared) AND ($2 = 'async' AND awaits OR key = ANY ($3))
                ON CONFLICT (generation, key) DO NOTHING
                RETURNING j.stale
            )
            SELECT count(*) AS jobs, count(*) FILTER (WHERE stale) AS stale FROM queued
        $sql$,
        nv_embed.seen_sql(e, g, 'update')
    )
];

COMMENT ON FUNCTION nv_embed.requeue_sql(nv_embed.embedding, nv_embed.generation)
    IS 'Two statements: take away the jobs of moved and cleared rows, returning the keys that still await; and queue those.';

-- Without its transition tables a statement would read whatever the session has under those names, with our rights: anybody can attach our function to a
-- table of theirs.
CREATE OR REPLACE FUNCTION nv_embed.check_trigger(relation oid, trigger_name name, event text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger AS t
        WHERE t.tgrelid = relation AND t.tgname = trigger_name
            AND (event NOT IN ('INSERT', 'UPDATE') OR t.tgnewtable = 'new_rows')
            AND (event NOT IN ('UPDATE', 'DELETE') OR t.tgoldtable = 'old_rows')
    ) THEN
        PERFORM nv_embed.refuse_trigger(relation, trigger_name);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_trigger(oid, name, text) IS 'Raises an error for a trigger that was not made by auto_embed.';

CREATE OR REPLACE FUNCTION nv_embed.refuse_trigger(relation oid, trigger_name name) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION 'trigger % of % belongs to no declaration', quote_ident(trigger_name), nv_embed.qualified(relation)
        USING ERRCODE = '42704', HINT = format('DROP TRIGGER %I ON %s', trigger_name, nv_embed.qualified(relation));
END
$$;

COMMENT ON FUNCTION nv_embed.refuse_trigger(oid, name) IS 'Raises the error for a trigger that was not made by auto_embed.';

-- A trigger is always the newest, whatever its transaction sees of tables. Generations that it does not see would miss the row.
CREATE OR REPLACE FUNCTION nv_embed.find_declared(id bigint, version int, relation oid, trigger_name name, event text) RETURNS nv_embed.embedding
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e nv_embed.embedding;
    seen int;
BEGIN
    SELECT * INTO e FROM nv_embed.embedding AS s WHERE s.id = find_declared.id AND s.relation = find_declared.relation;
    SELECT g.version INTO seen FROM nv_embed.generation AS g WHERE g.embedding = e.id AND g.state = 'live';
    IF e.id IS NULL OR version IS NULL THEN
        PERFORM nv_embed.refuse_trigger(relation, trigger_name);
    END IF;
    PERFORM nv_embed.check_trigger(relation, trigger_name, event);
    IF seen <> version THEN
        RAISE EXCEPTION 'could not serialize access due to a re-embedding of %', nv_embed.qualified(relation)
            USING ERRCODE = '40001', DETAIL = 'It began, was cut over or ended after this transaction''s snapshot was taken.', HINT = 'run the transaction again';
    END IF;
    RETURN e;
END
$$;

COMMENT ON FUNCTION nv_embed.find_declared(bigint, int, oid, name, text) IS 'The declaration of a trigger that auto_embed made, or an error.';

CREATE OR REPLACE FUNCTION nv_embed.wake() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF EXISTS (SELECT FROM nv_embed.worker AS w WHERE w.is_waiting AND w.seen_at > clock_timestamp() - interval '1 minute') THEN
        NOTIFY nv_embed_job;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.wake() IS 'Tells the workers that there are jobs, once this transaction commits, if any worker waits to hear of it.';

-- Keys and texts must not depend on how a session likes its numbers, dates, hours and bytes. Nothing of the user's runs in here.
CREATE OR REPLACE FUNCTION nv_embed.queue_written_rows() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET extra_float_digits = 3
SET datestyle = 'ISO, YMD'
SET intervalstyle = 'postgres'
SET timezone = 'UTC'
SET bytea_output = 'hex'
AS $$
DECLARE
    e nv_embed.embedding := nv_embed.find_declared(TG_ARGV[0]::bigint, TG_ARGV[1]::int, TG_RELID, TG_NAME, TG_OP);
    live_mode CONSTANT text := nv_embed.effective_mode(e.mode);
    mode text;
    g nv_embed.generation;
    queued bigint := 0;
    requeue text[];
    change record;
    gone record;
    again record;
BEGIN
    FOR g IN SELECT * FROM nv_embed.kept_generations(e.id) LOOP
        -- Nobody reads it yet, or any more: the statement does not wait for its model.
        mode := CASE WHEN live_mode = 'sync' AND g.state <> 'live' THEN 'async' ELSE live_mode END;
        e := nv_embed.as_declared(e, g);
        PERFORM nv_embed.check_target(e, g);
        IF g.chunks IS NOT NULL THEN
            PERFORM nv_embed.check_chunks(e, g);
        END IF;
        EXECUTE nv_embed.queue_sql(e, g, lower(TG_OP)) INTO change USING g.id, mode;
        queued := queued + change.queued;
        PERFORM nv_embed.tell(g.id, change.rows, change.blank, CASE WHEN g.chunks IS NULL THEN change.vectors ELSE 0 END, change.jobs, change.stale);
        IF change.rare > 0 THEN
            requeue := nv_embed.requeue_sql(e, g);
            EXECUTE requeue[1] INTO gone USING g.id, mode;
            EXECUTE requeue[2] INTO again USING g.id, mode, coalesce(gone.awaiting, '{}');
            PERFORM nv_embed.tell(g.id, 0, 0, 0, again.jobs - gone.jobs, again.stale - gone.stale);
            queued := queued + again.jobs;
        END IF;
        IF g.chunks IS NOT NULL THEN
            EXECUTE nv_embed.unchunk_sql(e, g, lower(TG_OP)) USING mode;
        END IF;
    END LOOP;
    IF queued > 0 THEN
        PERFORM nv_embed.wake();
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.queue_written_rows() IS 'Statement trigger: keeps jobs and tally in step with what an INSERT, UPDATE or DELETE did.';

-- TRUNCATE takes also what a transaction with a snapshot of its own does not see, neither rows nor what the tally says of them: a worker counts anew then.
CREATE OR REPLACE FUNCTION nv_embed.queue_nothing() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := nv_embed.find_declared(TG_ARGV[0]::bigint, TG_ARGV[1]::int, TG_RELID, TG_NAME, TG_OP);
    g nv_embed.generation;
BEGIN
    FOR g IN SELECT * FROM nv_embed.kept_generations(e.id) LOOP
        DELETE FROM nv_embed.job AS j WHERE j.generation = g.id;
        IF current_setting('transaction_isolation') = 'read committed' THEN
            DELETE FROM nv_embed.backfill AS b WHERE b.generation = g.id;
        ELSE
            INSERT INTO nv_embed.backfill (generation) VALUES (g.id) ON CONFLICT (generation) DO UPDATE SET after = NULL, counted = false;
            PERFORM nv_embed.wake();
        END IF;
        IF g.chunks IS NOT NULL THEN
            PERFORM nv_embed.check_chunks(e, g);
            EXECUTE format('TRUNCATE %s', nv_embed.qualified(g.chunks));
        END IF;
        INSERT INTO nv_embed.tally (generation, rows, blank, vectors, jobs, stale)
        SELECT t.generation, -sum(t.rows), -sum(t.blank), -sum(t.vectors), -sum(t.jobs), -sum(t.stale)
        FROM nv_embed.tally AS t
        WHERE t.generation = g.id
        GROUP BY t.generation;
    END LOOP;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION nv_embed.queue_nothing() IS 'Statement trigger: after a TRUNCATE no row awaits anything.';
