-- worker: who embeds, and how fast.
--
-- Writers wake workers only when one waits (`nv_embed.wake`), because a NOTIFY in every transaction would make them commit one after the other. The table
-- survives no crash of the server, and need not: a worker writes its line again.

CREATE UNLOGGED TABLE nv_embed.worker (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_waiting boolean NOT NULL DEFAULT false,
    rates      jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);

COMMENT ON TABLE nv_embed.worker IS 'Workers that have shown up in the last minute.';
COMMENT ON COLUMN nv_embed.worker.name IS 'Host and process.';
COMMENT ON COLUMN nv_embed.worker.is_waiting IS 'Whether it has nothing to do and wants to be woken.';
COMMENT ON COLUMN nv_embed.worker.rates IS 'Rows a second, by generation.';

CREATE FUNCTION nv_embed.is_worker() RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = 'nv_embed_worker' AND pg_catalog.pg_has_role(r.oid, 'USAGE'));

COMMENT ON FUNCTION nv_embed.is_worker() IS 'Whether the current role is a member of nv_embed_worker.';

-- Who may see and change the queue: workers all of it, owners of tables what concerns these. A key says something of a row that its reader may not see.
CREATE FUNCTION nv_embed.visible_generations() RETURNS SETOF bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT g.id
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
    WHERE nv_embed.owns(e.relation) IS NOT FALSE OR nv_embed.is_worker();
END;

COMMENT ON FUNCTION nv_embed.visible_generations() IS 'The generations of tables that the current role owns; a worker''s are all.';

DO $$
DECLARE
    table_name name;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['job', 'backfill', 'tally'] LOOP
        EXECUTE pg_catalog.format('ALTER TABLE nv_embed.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE pg_catalog.format('CREATE POLICY visible ON nv_embed.%I USING (generation IN (SELECT nv_embed.visible_generations()))', table_name);
        EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON nv_embed.%I TO PUBLIC', table_name);
    END LOOP;
END
$$;

ALTER TABLE nv_embed.worker ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.worker FOR SELECT USING (true);
CREATE POLICY workers ON nv_embed.worker TO nv_embed_worker USING (true);
GRANT SELECT ON nv_embed.worker TO PUBLIC;
GRANT INSERT, UPDATE, DELETE ON nv_embed.worker TO nv_embed_worker;
