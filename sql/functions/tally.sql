-- tally: differences in, sums out.

CREATE OR REPLACE FUNCTION nv_embed.tell(generation bigint, rows bigint, blank bigint, vectors bigint, jobs bigint, stale bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (rows, blank, vectors, jobs, stale) <> (0, 0, 0, 0, 0) THEN
        INSERT INTO nv_embed.tally (generation, rows, blank, vectors, jobs, stale) VALUES (generation, rows, blank, vectors, jobs, stale);
    END IF;
    -- Where there is no worker, whoever writes sweeps up, one in a thousand: lines of this generation, whose table they hold anyway. Who ends another one
    -- would wait for them. A transaction with a snapshot of its own could fail over it.
    IF random() < 0.001 AND current_setting('transaction_isolation') = 'read committed' THEN
        PERFORM nv_embed.fold_tally(generation);
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.tell(bigint, bigint, bigint, bigint, bigint, bigint) IS 'Adds a line of differences to the tally.';

-- Whoever ends a generation has its lines in a transaction that may be long, and so may its owner: they are left to the next one who folds.
CREATE OR REPLACE FUNCTION nv_embed.fold_tally(generation bigint DEFAULT NULL) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    places CONSTANT tid[] := ARRAY(
        SELECT t.ctid FROM nv_embed.tally AS t WHERE t.generation = coalesce(fold_tally.generation, t.generation) FOR UPDATE SKIP LOCKED
    );
BEGIN
    WITH folded AS (DELETE FROM nv_embed.tally AS t WHERE t.ctid = ANY (places) RETURNING t.*)
    INSERT INTO nv_embed.tally (generation, rows, blank, vectors, jobs, stale)
    SELECT f.generation, sum(f.rows), sum(f.blank), sum(f.vectors), sum(f.jobs), sum(f.stale)
    FROM folded AS f
    GROUP BY f.generation;
END
$$;

COMMENT ON FUNCTION nv_embed.fold_tally(bigint) IS 'Makes one line of the many that a generation has, or each generation; lines that somebody holds stay.';
