-- worker: signs of life.

-- Any role may write lines here and clear dead ones away, and then keep its transaction open: no line is waited for.
CREATE OR REPLACE FUNCTION nv_embed.beat(id bigint, name text, is_waiting boolean, rates jsonb) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    known bigint;
BEGIN
    UPDATE nv_embed.worker AS w
    SET seen_at = clock_timestamp(), is_waiting = beat.is_waiting, rates = beat.rates
    WHERE w.id = (
        SELECT s.id FROM nv_embed.worker AS s WHERE s.id = beat.id AND s.name = beat.name AND s.role_name = current_user FOR UPDATE SKIP LOCKED
    )
    RETURNING w.id INTO known;
    IF known IS NULL THEN
        INSERT INTO nv_embed.worker (name, is_waiting, rates) VALUES (beat.name, beat.is_waiting, beat.rates) RETURNING worker.id INTO known;
    END IF;
    DELETE FROM nv_embed.worker AS w
    WHERE w.id = ANY (ARRAY(SELECT s.id FROM nv_embed.worker AS s WHERE s.seen_at < clock_timestamp() - interval '1 minute' FOR UPDATE SKIP LOCKED));
    PERFORM nv_embed.fold_tally();
    RETURN known;
END
$$;

COMMENT ON FUNCTION nv_embed.beat(bigint, text, boolean, jsonb)
    IS 'Says that a worker is alive, whether it waits for jobs and how many rows a second it embeds; clears away the dead, and folds the tally.';

CREATE OR REPLACE FUNCTION nv_embed.leave(id bigint) RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM nv_embed.worker AS w WHERE w.id = leave.id;
$$;

COMMENT ON FUNCTION nv_embed.leave(bigint) IS 'Says that a worker is gone.';

-- A table that is not logged cannot even be planned for on a standby, which knows of no worker then.
CREATE OR REPLACE FUNCTION nv_embed.living_workers() RETURNS SETOF nv_embed.worker
LANGUAGE plpgsql STABLE ROWS 10
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT pg_is_in_recovery() THEN
        RETURN QUERY SELECT w.* FROM nv_embed.worker AS w WHERE w.seen_at > clock_timestamp() - interval '15 seconds';
    END IF;
END
$$;

COMMENT ON FUNCTION nv_embed.living_workers() IS 'Workers that gave a sign of life in the last 15 seconds; none on a standby.';

-- What an owner's worker says is shown to all who see the owner's tables. A rate of next to nothing would make an eta that no interval holds.
CREATE OR REPLACE FUNCTION nv_embed.rate(generation bigint, relation regclass) RETURNS double precision
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(sum(s.rate) FILTER (WHERE s.rate >= 0.001), 0)
    FROM (
        SELECT (w.rates ->> generation::text)::numeric AS rate FROM nv_embed.living_workers() AS w WHERE nv_embed.may_embed(w.role_name, relation)
    ) AS s;
END;

COMMENT ON FUNCTION nv_embed.rate(bigint, regclass) IS 'Rows a second that the workers of a table embed now; less than one in a thousand seconds is none.';
