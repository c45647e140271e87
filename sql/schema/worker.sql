-- worker: who embeds, and how fast.
--
-- Writers wake workers only when one waits (`nv_embed.wake`), because a NOTIFY in every transaction would make them commit one after the other. The table
-- survives no crash of the server, and need not: a worker writes its line again.

CREATE UNLOGGED TABLE nv_embed.worker (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    role_name  name NOT NULL DEFAULT current_user,
    name       text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    is_waiting boolean NOT NULL DEFAULT false,
    rates      jsonb NOT NULL DEFAULT '{}' CHECK (
        pg_catalog.jsonb_typeof(rates) = 'object'
        AND NOT pg_catalog.jsonb_path_exists(rates, 'strict $.* ? (@.type() != "number" || @ < 0 || @ > 1e9)')
    )
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_scale_factor = 0);

COMMENT ON TABLE nv_embed.worker IS 'Workers that have shown up in the last minute.';
COMMENT ON COLUMN nv_embed.worker.role_name IS 'Whom it works as: its rates count where that role may embed.';
COMMENT ON COLUMN nv_embed.worker.name IS 'Host and process.';
COMMENT ON COLUMN nv_embed.worker.is_waiting IS 'Whether it has nothing to do and wants to be woken.';
COMMENT ON COLUMN nv_embed.worker.rates IS 'Rows a second, by generation.';

-- The role may be missing, where nobody could make it: then it is the owner of all this who embeds for every table.
CREATE FUNCTION nv_embed.is_worker(role oid DEFAULT pg_catalog.to_regrole(pg_catalog.quote_ident(current_user))) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM pg_catalog.pg_roles AS r WHERE r.rolname = 'nv_embed_worker' AND pg_catalog.pg_has_role(role, r.oid, 'USAGE'))
    OR (SELECT pg_catalog.pg_has_role(role, c.relowner, 'USAGE') FROM pg_catalog.pg_class AS c WHERE c.oid = 'nv_embed.job'::regclass);

COMMENT ON FUNCTION nv_embed.is_worker(oid) IS 'Whether a role embeds for all tables: a member of nv_embed_worker, or whoever owns the queue.';

CREATE FUNCTION nv_embed.may_embed(role_name name, relation regclass) RETURNS boolean
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT FROM pg_catalog.pg_roles AS r JOIN pg_catalog.pg_class AS c ON c.oid = relation
    WHERE r.rolname = role_name AND (pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE') OR nv_embed.is_worker(r.oid))
);

COMMENT ON FUNCTION nv_embed.may_embed(name, regclass) IS 'Whether a role embeds for a table: its owner, and a worker for all.';

-- Who may see and change the queue: workers all of it, owners of tables what concerns these. A key says something of a row that its reader may not see.
CREATE FUNCTION nv_embed.visible_generations() RETURNS SETOF bigint
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT g.id
    FROM nv_embed.generation AS g JOIN nv_embed.embedding AS e ON e.id = g.embedding
    WHERE nv_embed.owns(e.relation) IS NOT FALSE OR (SELECT nv_embed.is_worker());
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

-- A worker may be any role, since every owner's may be one: each writes lines of its own. A line that is not kept up is anybody's to clear away, so that
-- nobody is woken for ever.
ALTER TABLE nv_embed.worker ENABLE ROW LEVEL SECURITY;
CREATE POLICY readable ON nv_embed.worker FOR SELECT USING (true);
CREATE POLICY written_by_itself ON nv_embed.worker USING (role_name = current_user)
    WITH CHECK (role_name = current_user AND seen_at <= clock_timestamp());
CREATE POLICY cleared_when_dead ON nv_embed.worker FOR DELETE USING (seen_at < clock_timestamp() - interval '1 minute');
-- FOR UPDATE SKIP LOCKED finds those that nobody is clearing away.
CREATE POLICY locked_when_dead ON nv_embed.worker FOR UPDATE USING (seen_at < clock_timestamp() - interval '1 minute') WITH CHECK (false);
GRANT SELECT, DELETE ON nv_embed.worker TO PUBLIC;
GRANT INSERT (name, is_waiting, rates), UPDATE (seen_at, is_waiting, rates) ON nv_embed.worker TO PUBLIC;
