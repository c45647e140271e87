-- tally: differences in, sums out.

CREATE OR REPLACE FUNCTION nv_embed.tell(generation bigint, rows bigint, blank bigint, vectors bigint, jobs bigint, stale bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (rows, blank, vectors, jobs, stale) <> (0, 0, 0, 0, 0) THEN
        INSERT INTO nv_embed.tally (generation, rows, blank, vectors, jobs, stale) VALUES (generation, rows, blank, vectors, jobs, stale);
    END IF;
    -- Where there is no worker, whoever writes sweeps up, one in a thousand. A transaction with a snapshot of its own could fail over it.
    IF random() < 0.001 AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM nv_embed.fold_tally();
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.tell(bigint, bigint, bigint, bigint, bigint, bigint) IS 'Adds a line of differences to the tally.';

CREATE OR REPLACE FUNCTION nv_embed.fold_tally() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_try_advisory_xact_lock('nv_embed.tally'::regclass::int, 0) THEN
        WITH folded AS (DELETE FROM nv_embed.tally RETURNING *)
        INSERT INTO nv_embed.tally (generation, rows, blank, vectors, jobs, stale)
        SELECT f.generation, sum(f.rows), sum(f.blank), sum(f.vectors), sum(f.jobs), sum(f.stale)
        FROM folded AS f
        GROUP BY f.generation;
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.fold_tally() IS 'Makes one line of the many that a generation has, unless somebody is doing it.';
