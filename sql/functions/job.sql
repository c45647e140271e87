-- job: what a worker does with jobs.
--
-- Claim, read, embed with no transaction open, write back. The lease, not a transaction, owns a job meanwhile: a worker that dies loses nothing. Whoever
-- queues a row again takes the lease away, so that a row changed meanwhile is simply embedded again.
--
-- All of it runs with the worker's own rights: those of nv_embed_worker, or of whoever owns the table.

-- SKIP LOCKED keeps workers from queueing behind each other. New work goes before retries, and each generation has its share of it: a bulk load does not
-- hold up the one row that somebody else changed. What the shares leave goes to whoever has more.
CREATE OR REPLACE FUNCTION nv_embed.claim(generations bigint[], most int, lease interval)
RETURNS TABLE (generation bigint, key text, id bigint, attempts int)
LANGUAGE plpgsql ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    room int := most;
    claimed int;
    round record;
BEGIN
    FOR round IN SELECT * FROM (VALUES (true, true), (true, false), (false, false)) AS r (is_fresh, is_shared) LOOP
        FOR place IN 1 .. cardinality(generations) LOOP
            EXIT WHEN room = 0;
            RETURN QUERY
            SELECT generations[place], c.*
            FROM nv_embed.claim_of(
                generations[place], round.is_fresh,
                CASE WHEN round.is_shared THEN ceil(room::float8 / (cardinality(generations) - place + 1))::int ELSE room END, lease
            ) AS c;
            GET DIAGNOSTICS claimed = ROW_COUNT;
            room := room - claimed;
        END LOOP;
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.claim(bigint[], int, interval) IS 'Leases jobs of these generations, oldest first, new ones before retries.';

-- By ctid, because with a number of rows that it does not know the planner might read the whole queue to find a few.
CREATE OR REPLACE FUNCTION nv_embed.claim_of(generation bigint, fresh boolean, most int, lease interval)
RETURNS TABLE (key text, id bigint, attempts int)
LANGUAGE plpgsql ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    moment CONSTANT timestamptz := clock_timestamp();
    places tid[];
BEGIN
    IF fresh THEN
        places := ARRAY(
            SELECT c.ctid
            FROM nv_embed.job AS c
            WHERE c.generation = claim_of.generation AND c.retry_at IS NULL AND (c.leased_until IS NULL OR c.leased_until <= moment)
            ORDER BY c.id
            LIMIT most
            FOR UPDATE SKIP LOCKED
        );
    ELSE
        places := ARRAY(
            SELECT c.ctid
            FROM nv_embed.job AS c
            WHERE c.generation = claim_of.generation AND c.retry_at <= moment AND (c.leased_until IS NULL OR c.leased_until <= moment)
            ORDER BY c.retry_at
            LIMIT most
            FOR UPDATE SKIP LOCKED
        );
    END IF;
    RETURN QUERY
    UPDATE nv_embed.job AS j SET leased_until = moment + lease WHERE j.ctid = ANY (places) RETURNING j.key, j.id, j.attempts;
END
$$;

COMMENT ON FUNCTION nv_embed.claim_of(bigint, boolean, int, interval) IS 'Leases jobs of one generation: those that were never tried, or those that failed and are due.';

-- A job that somebody is queueing again is left out: its number is about to change, and whoever waits for that writer may hold what the writer wants next.
CREATE OR REPLACE FUNCTION nv_embed.lock_jobs(generation bigint, keys text[], ids bigint[]) RETURNS TABLE (place bigint, key text, stale boolean)
LANGUAGE sql ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.place, j.key, j.stale
    FROM unnest(keys, ids) WITH ORDINALITY AS u (key, id, place)
    JOIN nv_embed.job AS j ON j.generation = lock_jobs.generation AND j.key = u.key AND j.id = u.id
    FOR UPDATE OF j SKIP LOCKED;
$$;

COMMENT ON FUNCTION nv_embed.lock_jobs(bigint, text[], bigint[]) IS 'Locks jobs that are still what they were, without waiting for anybody.';

CREATE OR REPLACE FUNCTION nv_embed.held_places(generation bigint, keys text[], ids bigint[]) RETURNS int[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(SELECT l.place::int FROM nv_embed.lock_jobs(generation, keys, ids) AS l);
END
$$;

COMMENT ON FUNCTION nv_embed.held_places(bigint, text[], bigint[]) IS 'Locks jobs that are still what they were; the places of those.';

-- A worker that claims at the same moment may hold a job that is leased already, until it has seen that; whoever gives jobs back asks again then. A lease
-- that is over is not renewed: the job may have been given back a moment ago.
CREATE OR REPLACE FUNCTION nv_embed.release(generation bigint, keys text[], ids bigint[], lease interval) RETURNS int[]
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    WITH released AS (
        UPDATE nv_embed.job AS j
        SET leased_until = clock_timestamp() + lease
        FROM nv_embed.lock_jobs(release.generation, keys, ids) AS l
        WHERE j.generation = release.generation AND j.key = l.key AND j.retry_at IS DISTINCT FROM 'infinity'
            AND (lease = '0' OR j.leased_until > clock_timestamp())
        RETURNING l.place::int
    )
    SELECT ARRAY(SELECT place FROM released);
$$;

COMMENT ON FUNCTION nv_embed.release(bigint, text[], bigint[], interval)
    IS 'Gives jobs another lease, from now; one of no length gives them back. Returns the places of those that are not done, failed, queued again or held by somebody.';

CREATE OR REPLACE FUNCTION nv_embed.settle(generation bigint, keys text[], ids bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    gone record;
BEGIN
    WITH settled AS (
        DELETE FROM nv_embed.job AS j USING nv_embed.lock_jobs(settle.generation, keys, ids) AS l
        WHERE j.generation = settle.generation AND j.key = l.key
        RETURNING j.stale
    )
    SELECT count(*) AS jobs, count(*) FILTER (WHERE s.stale) AS stale INTO gone FROM settled AS s;
    PERFORM nv_embed.tell(generation, 0, 0, 0, -gone.jobs, -gone.stale);
END
$$;

COMMENT ON FUNCTION nv_embed.settle(bigint, text[], bigint[]) IS 'Takes jobs away that are done, unless their rows were queued again meanwhile.';

CREATE OR REPLACE FUNCTION nv_embed.end_stale(generation bigint, keys text[], ids bigint[]) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    mended bigint;
BEGIN
    UPDATE nv_embed.job AS j SET stale = false
    FROM nv_embed.lock_jobs(end_stale.generation, keys, ids) AS l
    WHERE j.generation = end_stale.generation AND j.key = l.key AND j.stale;
    GET DIAGNOSTICS mended = ROW_COUNT;
    PERFORM nv_embed.tell(generation, 0, 0, 0, 0, -mended);
END
$$;

COMMENT ON FUNCTION nv_embed.end_stale(bigint, text[], bigint[]) IS 'Says of jobs that their rows have no vector of an earlier text any more.';

-- Where somebody had a job locked, as a worker has that claims at the same moment, it is as it was, lease and all.
CREATE OR REPLACE FUNCTION nv_embed.settle_or_release(
    generation bigint, keys text[], ids bigint[], done int[], OUT settled int, OUT unsettled int[]
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM nv_embed.settle(generation, nv_embed.chosen(keys, done), nv_embed.chosen(ids, done));
    IF cardinality(done) < cardinality(keys) THEN
        PERFORM nv_embed.release(generation, keys, ids, '1 second');
    END IF;
    unsettled := nv_embed.unsettled(generation, keys, ids);
    settled := (SELECT count(*) FROM unnest(done) AS place WHERE place <> ALL (unsettled));
END
$$;

COMMENT ON FUNCTION nv_embed.settle_or_release(bigint, text[], bigint[], int[])
    IS 'Takes away the jobs at some places, which are done; the others are due again in a second. Returns how many are settled, and the places of those that are left.';

CREATE OR REPLACE FUNCTION nv_embed.unsettled(generation bigint, keys text[], ids bigint[]) RETURNS int[]
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT u.place::int
    FROM unnest(keys, ids) WITH ORDINALITY AS u (key, id, place)
    JOIN nv_embed.job AS j ON j.generation = unsettled.generation AND j.key = u.key AND j.id = u.id AND j.leased_until IS NOT NULL
);

COMMENT ON FUNCTION nv_embed.unsettled(bigint, text[], bigint[]) IS 'The places of jobs that are still leased and have not been queued again.';

CREATE OR REPLACE FUNCTION nv_embed.fail(generation bigint, keys text[], ids bigint[], error text, messages text[], retry_in interval) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE nv_embed.job AS j
    SET leased_until = NULL,
        attempts = j.attempts + 1,
        retry_at = coalesce(clock_timestamp() + retry_in, 'infinity'),
        history = coalesce(j.history, '[]') || jsonb_build_object('at', clock_timestamp(), 'error', error, 'message', messages[l.place])
    FROM nv_embed.lock_jobs(fail.generation, keys, ids) AS l
    WHERE j.generation = fail.generation AND j.key = l.key;
$$;

COMMENT ON FUNCTION nv_embed.fail(bigint, text[], bigint[], text, text[], interval)
    IS 'Counts an attempt that failed: the job is tried again after an interval, or never where that is null.';

-- read_sql and write_back_sql: built as text, because tables and columns are the user's, and run with the worker's rights.

CREATE OR REPLACE FUNCTION nv_embed.digest_sql(source text, alias name) RETURNS text
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN format('pg_catalog.sha256(pg_catalog.convert_to(%s, ''UTF8''))', nv_embed.rendered(source, alias));

COMMENT ON FUNCTION nv_embed.digest_sql(text, name) IS 'An SQL expression: a digest of the text of a row.';

-- A row that a worker may not see would seem gone, and its job with it.
CREATE OR REPLACE FUNCTION nv_embed.check_sees_all(relation regclass) RETURNS void
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF row_security_active(relation) THEN
        RAISE EXCEPTION 'row-level security may hide rows of % from role %', nv_embed.qualified(relation), quote_ident(current_user)
            USING ERRCODE = '42501', HINT = 'run the worker as a role with BYPASSRLS, or as the owner of the table';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.check_sees_all(regclass) IS 'Raises an error where the current role sees a part of a table only.';

-- A text of more bytes than a sidecar takes is not sent to a worker at all.
CREATE OR REPLACE FUNCTION nv_embed.read_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    e CONSTANT nv_embed.embedding := (nv_embed.declaration(id)).e;
BEGIN
    PERFORM nv_embed.check_sees_all(e.relation);
    RETURN format(
        $sql$
            SELECT f.place, pg_catalog.octet_length(text), CASE WHEN pg_catalog.octet_length(text) OPERATOR(pg_catalog.<=) $2 THEN text END, digest
            FROM (
                SELECT f.place, %s AS digest, CASE WHEN %s THEN %s END AS text
                FROM (SELECT pg_catalog.unnest($1) AS key, pg_catalog.generate_series(1, pg_catalog.cardinality($1)) AS place LIMIT pg_catalog.cardinality($1)) AS f
                JOIN %s AS t ON %s
            ) AS f
        $sql$,
        nv_embed.digest_sql(e.source, 't'), nv_embed.has_content(e.source, 't'), nv_embed.rendered(e.source, 't'),
        nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f')
    );
END
$$;

COMMENT ON FUNCTION nv_embed.read_sql(bigint) IS 'A query: the texts of rows by their keys, and digests of them; a row without content has a digest and no text.';

CREATE OR REPLACE FUNCTION nv_embed.read(generation bigint, keys text[], most_bytes int) RETURNS TABLE (place int, size int, text text, digest bytea)
LANGUAGE plpgsql STABLE ROWS 1000
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE nv_embed.read_sql(generation) USING keys, most_bytes;
END
$$;

COMMENT ON FUNCTION nv_embed.read(bigint, text[], int)
    IS 'What rows read, by their keys; a text of more bytes than that is not returned, a row without content has none, and one that is gone is left out.';

-- A row that somebody else holds is left for later rather than waited for: a worker that waits would hold the rows that it has written already. A row that
-- its own triggers kept from being written is not counted as written. Nor is one that they rewrote: it came with its vector, as far as the queue's trigger can
-- tell, so that its job is gone by now and is returned as it was. That a vector is taken away is right for any text.
CREATE OR REPLACE FUNCTION nv_embed.write_back_sql(id bigint) RETURNS text
LANGUAGE plpgsql STABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    declared CONSTANT record := nv_embed.declaration(id);
    e CONSTANT nv_embed.embedding := declared.e;
    g CONSTANT nv_embed.generation := declared.g;
BEGIN
    PERFORM nv_embed.check_sees_all(e.relation);
    PERFORM nv_embed.check_may_fill(e, g);
    RETURN format(
        $sql$
            WITH found AS MATERIALIZED (
                SELECT pg_catalog.unnest($1) AS key, pg_catalog.unnest($2) AS digest, pg_catalog.unnest($3) AS vector,
                    pg_catalog.generate_series(1, pg_catalog.cardinality($1)) AS place
                LIMIT pg_catalog.cardinality($1)
            ),
            held AS MATERIALIZED (
                SELECT f.place, t.%1$I IS NULL AND f.vector IS NULL AS is_done
                FROM found AS f JOIN %2$s AS t ON %3$s
                WHERE %4$s OPERATOR(pg_catalog.=) f.digest
                FOR NO KEY UPDATE OF t SKIP LOCKED
            ),
            written AS (
                UPDATE %2$s AS t SET %1$I = f.vector::%5$s
                FROM found AS f JOIN held AS h ON h.place OPERATOR(pg_catalog.=) f.place
                WHERE NOT h.is_done AND %3$s
                RETURNING f.place, f.key, f.vector IS NULL OR %4$s OPERATOR(pg_catalog.=) f.digest AS is_same, t.%1$I IS NOT NULL OR %6$s AS awaits
            )
            SELECT ARRAY(SELECT place FROM written WHERE is_same) AS written,
                ARRAY(
                    SELECT ROW(%7$L, w.key, NULL, NULL, true, NULL, coalesce(j.attempts, 0), NULL, j.history)::nv_embed.job
                    FROM written AS w
                    LEFT JOIN LATERAL (
                        SELECT s.attempts, s.history FROM nv_embed.job AS s
                        WHERE s.generation OPERATOR(pg_catalog.=) %7$L AND s.key OPERATOR(pg_catalog.=) w.key
                        OFFSET 0
                    ) AS j ON true
                    WHERE NOT w.is_same AND w.awaits
                ) AS rewritten,
                ARRAY(SELECT place FROM held WHERE is_done) AS unchanged,
                ARRAY(SELECT f.place FROM found AS f WHERE NOT EXISTS (SELECT FROM %2$s AS t WHERE %3$s)) AS gone
        $sql$,
        g.target, nv_embed.qualified(e.relation), nv_embed.matched_sql(e.relation, 'f'), nv_embed.digest_sql(e.source, 't'), nv_embed.type_sql(g.storage, g.dim),
        nv_embed.has_content(e.source, 't'), id
    );
END
$$;

COMMENT ON FUNCTION nv_embed.write_back_sql(bigint)
    IS 'A statement: write vectors to rows that still read the same; it returns the places of those written, the jobs of those that triggers rewrote, the places of '
       'those without content, and of those gone.';

-- The user's triggers run in these: no SET search_path, and every name with its schema.

CREATE OR REPLACE FUNCTION nv_embed.write_rows(
    generation bigint, keys text[], digests bytea[], vectors anyarray,
    OUT written int[], OUT rewritten nv_embed.job[], OUT unchanged int[], OUT gone int[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    done record;
BEGIN
    PERFORM nv_embed.hold_generation(generation);
    EXECUTE nv_embed.write_back_sql(generation) INTO done USING keys, digests, vectors;
    written := done.written;
    rewritten := done.rewritten;
    unchanged := done.unchanged;
    gone := done.gone;
END
$$;

COMMENT ON FUNCTION nv_embed.write_rows(bigint, text[], bytea[], anyarray)
    IS 'Writes vectors to rows that still read as they were embedded; the places of those written, the jobs of those that triggers rewrote, the places of those that '
       'had none and get none, and of those gone.';

CREATE OR REPLACE FUNCTION nv_embed.write_back(
    generation bigint, keys text[], ids bigint[], digests bytea[], vectors anyarray, OUT settled int, OUT unsettled int[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    outcome CONSTANT record := nv_embed.write_rows(generation, keys, digests, vectors);
    done CONSTANT pg_catalog.int4[] := outcome.written OPERATOR(pg_catalog.||) outcome.unchanged OPERATOR(pg_catalog.||) outcome.gone;
BEGIN
    SELECT s.settled, s.unsettled INTO settled, unsettled FROM nv_embed.settle_or_release(generation, keys, ids, done) AS s;
    PERFORM nv_embed.retry_rewritten(generation, outcome.rewritten);
END
$$;

COMMENT ON FUNCTION nv_embed.write_back(bigint, text[], bigint[], bytea[], anyarray)
    IS 'Writes vectors to rows that still read as they were embedded, and settles their jobs; returns how many, and the places of those that somebody held, which '
       'are due again in a second and can be written once more until then.';

CREATE OR REPLACE FUNCTION nv_embed.queue_rewritten(generation bigint, rewritten nv_embed.job[]) RETURNS TABLE (attempts int, keys text[], ids bigint[])
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known bigint;
BEGIN
    IF cardinality(rewritten) = 0 THEN
        RETURN;
    END IF;
    SELECT count(*) INTO known FROM unnest(rewritten) AS u JOIN nv_embed.job AS j ON j.generation = queue_rewritten.generation AND j.key = u.key;
    PERFORM nv_embed.tell(generation, 0, 0, 0, cardinality(rewritten) - known, cardinality(rewritten) - known);
    RETURN QUERY
    WITH queued AS (
        INSERT INTO nv_embed.job AS j (generation, key, stale, attempts, history)
        SELECT DISTINCT ON (u.key) queue_rewritten.generation, u.key, true, u.attempts, u.history FROM unnest(rewritten) AS u
        ON CONFLICT ON CONSTRAINT job_pkey DO UPDATE SET attempts = excluded.attempts, history = excluded.history
        RETURNING j.key, j.id, j.attempts
    )
    SELECT q.attempts, array_agg(q.key), array_agg(q.id) FROM queued AS q GROUP BY q.attempts;
END
$$;

COMMENT ON FUNCTION nv_embed.queue_rewritten(bigint, nv_embed.job[])
    IS 'Queues rows that their triggers rewrote while their vectors were written, as they were queued before; what was queued, by how often it has failed.';

-- What a trigger rewrites once is right at the next try. Where it always does, the row would be embedded for ever.
CREATE OR REPLACE FUNCTION nv_embed.retry_rewritten(generation bigint, rewritten nv_embed.job[]) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    most_attempts CONSTANT int := 5;
    error CONSTANT pg_catalog.text := 'TextRewritten';
    message CONSTANT pg_catalog.text := 'a trigger of the table rewrites what is embedded while its vector is written';
    tried record;
    messages pg_catalog.text[];
BEGIN
    FOR tried IN SELECT * FROM nv_embed.queue_rewritten(generation, rewritten) LOOP
        messages := pg_catalog.array_fill(message, ARRAY[pg_catalog.cardinality(tried.keys)]);
        IF tried.attempts OPERATOR(pg_catalog.+) 1 OPERATOR(pg_catalog.<) most_attempts THEN
            PERFORM nv_embed.fail(generation, tried.keys, tried.ids, error, messages, nv_embed.retry_delay(tried.attempts));
        ELSE
            PERFORM nv_embed.give_up(generation, tried.keys, tried.ids, nv_embed.digests(generation, tried.keys), error, messages);
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.retry_rewritten(bigint, nv_embed.job[])
    IS 'Counts an attempt that failed of rows that their triggers rewrote while their vectors were written: another one later, or none after five.';

CREATE OR REPLACE FUNCTION nv_embed.retry_delay(attempts int) RETURNS interval
LANGUAGE sql VOLATILE STRICT
SET search_path = pg_catalog, pg_temp
RETURN make_interval(secs => 5 * 2 ^ least(attempts, 9) * (1 + 0.5 * random()));

COMMENT ON FUNCTION nv_embed.retry_delay(int) IS 'How long until a row is tried again that failed before, as workers have it.';

CREATE OR REPLACE FUNCTION nv_embed.digests(generation bigint, keys text[]) RETURNS bytea[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN ARRAY(
        SELECT r.digest FROM generate_series(1, cardinality(keys)) AS u (place) LEFT JOIN nv_embed.read(generation, keys, 0) AS r ON r.place = u.place ORDER BY u.place
    );
END
$$;

COMMENT ON FUNCTION nv_embed.digests(bigint, text[]) IS 'Digests of what rows read now, by their keys.';

-- Rows whose text cannot be embedded lose the vector of the text before, because a vector that is not the text's is worse than none. Losing it queues them
-- anew; that job is made the one that failed again.
CREATE OR REPLACE FUNCTION nv_embed.give_up(generation bigint, keys text[], ids bigint[], digests bytea[], error text, messages text[]) RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
    histories CONSTANT pg_catalog.jsonb[] := nv_embed.histories(generation, keys);
    outcome CONSTANT record := nv_embed.clear_rows(generation, keys, ids, digests);
    failed CONSTANT pg_catalog.int4[] := outcome.written OPERATOR(pg_catalog.||) outcome.unchanged;
BEGIN
    PERFORM nv_embed.inherit(
        generation, nv_embed.chosen(keys, outcome.written), nv_embed.chosen(ids, outcome.written), nv_embed.chosen(histories, outcome.written)
    );
    -- Where the vector was taken away in the table, the queue's trigger has queued the row anew, as one that has none.
    PERFORM nv_embed.end_stale(generation, nv_embed.chosen(keys, outcome.unchanged), nv_embed.chosen(ids, outcome.unchanged));
    PERFORM nv_embed.fail(generation, nv_embed.chosen(keys, failed), nv_embed.chosen(ids, failed), error, nv_embed.chosen(messages, failed), NULL);
    PERFORM nv_embed.settle_or_release(generation, keys, ids, outcome.gone);
    RETURN pg_catalog.cardinality(failed);
END
$$;

COMMENT ON FUNCTION nv_embed.give_up(bigint, text[], bigint[], bytea[], text, text[])
    IS 'Marks jobs as failed for good, and takes away what vectors their rows had; returns how many.';

CREATE OR REPLACE FUNCTION nv_embed.clear_rows(
    generation bigint, keys text[], ids bigint[], digests bytea[], OUT written int[], OUT unchanged int[], OUT gone int[]
)
LANGUAGE plpgsql
AS $$
DECLARE
    nothing CONSTANT pg_catalog.text[] := '{}';
BEGIN
    IF ((nv_embed.declaration(generation)).g).chunks IS NULL THEN
        SELECT w.written, w.unchanged, w.gone INTO written, unchanged, gone
        FROM nv_embed.write_rows(generation, keys, digests, pg_catalog.array_fill(NULL::pg_catalog.text, ARRAY[pg_catalog.cardinality(keys)])) AS w;
    ELSE
        written := '{}';
        SELECT c.written, c.gone INTO unchanged, gone FROM nv_embed.write_chunks(generation, keys, ids, digests, '{}', '{}', '{}', nothing) AS c;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.clear_rows(bigint, text[], bigint[], bytea[])
    IS 'Takes away the vectors of rows that still read as they did; the places of those that had one in the table, of those that had none there, and of those gone.';

CREATE OR REPLACE FUNCTION nv_embed.histories(generation bigint, keys text[]) RETURNS jsonb[]
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN ARRAY(
    SELECT j.history
    FROM unnest(keys) WITH ORDINALITY AS u (key, place)
    LEFT JOIN nv_embed.job AS j ON j.generation = histories.generation AND j.key = u.key
    ORDER BY u.place
);

COMMENT ON FUNCTION nv_embed.histories(bigint, text[]) IS 'What went wrong so far with jobs, in their order.';

CREATE OR REPLACE FUNCTION nv_embed.inherit(generation bigint, keys text[], ids bigint[], histories jsonb[]) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE nv_embed.job AS j
    SET id = u.id, history = u.history, attempts = coalesce(jsonb_array_length(u.history), 0)
    FROM unnest(keys, ids, histories) AS u (key, id, history)
    WHERE j.generation = inherit.generation AND j.key = u.key;
$$;

COMMENT ON FUNCTION nv_embed.inherit(bigint, text[], bigint[], jsonb[]) IS 'Makes queued rows the jobs that they were before.';

CREATE OR REPLACE FUNCTION nv_embed.chosen(list anyarray, places int[]) RETURNS anyarray
LANGUAGE sql IMMUTABLE STRICT
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ARRAY(SELECT list[place] FROM unnest(places) AS place);
$$;

COMMENT ON FUNCTION nv_embed.chosen(anyarray, int[]) IS 'The elements of an array at some places.';

CREATE OR REPLACE FUNCTION nv_embed.retry(relation regclass DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    driven bigint;
BEGIN
    UPDATE nv_embed.job AS j
    SET retry_at = NULL, attempts = 0, leased_until = NULL
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
    WHERE j.generation = g.id AND j.retry_at = 'infinity' AND e.relation = coalesce(retry.relation, e.relation);
    GET DIAGNOSTICS driven = ROW_COUNT;
    IF driven > 0 THEN
        PERFORM nv_embed.wake();
    END IF;
    RETURN driven;
END
$$;

COMMENT ON FUNCTION nv_embed.retry(regclass) IS 'Queues again what failed for good, of one table or of all that are the caller''s; returns how many rows.';

CREATE OR REPLACE FUNCTION nv_embed.is_pending(generation bigint) RETURNS boolean
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM nv_embed.job AS j WHERE j.generation = is_pending.generation AND j.retry_at IS NULL)
    OR EXISTS (SELECT FROM nv_embed.job AS j WHERE j.generation = is_pending.generation AND j.retry_at < 'infinity')
    OR EXISTS (SELECT FROM nv_embed.backfill AS b WHERE b.generation = is_pending.generation);

COMMENT ON FUNCTION nv_embed.is_pending(bigint) IS 'Whether rows of a generation wait for a worker.';

CREATE OR REPLACE FUNCTION nv_embed.has_failed(generation bigint) RETURNS boolean
LANGUAGE sql STABLE STRICT
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM nv_embed.job AS j WHERE j.generation = has_failed.generation AND j.retry_at = 'infinity');

COMMENT ON FUNCTION nv_embed.has_failed(bigint) IS 'Whether rows of a generation failed for good.';

-- Each look is a statement of its own and so sees what was committed meanwhile, unless the transaction has a snapshot of its own.
CREATE OR REPLACE FUNCTION nv_embed.wait(relation regclass, target name DEFAULT 'embedding', timeout interval DEFAULT '1 min') RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    generation CONSTANT bigint := (nv_embed.live_generation(relation, target)).id;
    until CONSTANT timestamptz := clock_timestamp() + timeout;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'nv_embed.wait() cannot see what workers do in a % transaction', current_setting('transaction_isolation')
            USING ERRCODE = '25001', HINT = 'wait in a read committed transaction';
    ELSIF generation NOT IN (SELECT nv_embed.visible_generations()) THEN
        RAISE EXCEPTION 'role % does not see which rows of % await their vectors', quote_ident(current_user), nv_embed.qualified(relation)
            USING ERRCODE = '42501', HINT = 'wait as the owner of the table, or as a member of nv_embed_worker';
    END IF;
    LOOP
        IF NOT nv_embed.is_pending(generation) THEN
            RETURN NOT nv_embed.has_failed(generation);
        END IF;
        IF clock_timestamp() >= until THEN
            RETURN false;
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;
END
$$;

COMMENT ON FUNCTION nv_embed.wait(regclass, name, interval)
    IS 'Waits until no row of a table awaits its vector any more; false if the time is over before, or if rows failed.';

CREATE OR REPLACE FUNCTION nv_embed.work()
RETURNS TABLE (
    generation bigint, relation text, model text, revision text, dim int, storage text, truncate text, chunk_tokens int, chunk_overlap int,
    is_live boolean, is_backfilling boolean, is_limited boolean
)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT g.id, nv_embed.qualified(e.relation), g.model, g.revision, g.dim, g.storage, e.truncate, g.chunk_tokens, g.chunk_overlap, g.state = 'live',
        EXISTS (SELECT FROM nv_embed.backfill AS b WHERE b.generation = g.id),
        EXISTS (
            SELECT FROM nv_embed.reembedding AS r
            WHERE r.embedding = e.id AND r.to_generation = g.id AND r.rows_per_s IS NOT NULL AND r.state = 'backfilling'
        )
    FROM nv_embed.generation AS g
    JOIN nv_embed.embedding AS e ON e.id = g.embedding
    JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
    WHERE g.state <> 'planned' AND g.id IN (SELECT nv_embed.visible_generations())
    ORDER BY g.state <> 'live', g.id;
END;

COMMENT ON FUNCTION nv_embed.work() IS 'The generations that the current role may embed for, and what they are made with.';

CREATE OR REPLACE FUNCTION nv_embed.vector_types() RETURNS TABLE (storage text, type oid, array_type oid)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT t.typname::text, t.oid, t.typarray
    FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_type AS t ON t.typnamespace = e.extnamespace
    WHERE e.extname = 'vector' AND t.typname IN ('vector', 'halfvec');
END;

COMMENT ON FUNCTION nv_embed.vector_types() IS 'pgvector''s types, for whoever sends them in binary form.';
