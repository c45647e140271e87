-- namespace: the schema of everything that is not called every day, and the role that may administer it.

CREATE SCHEMA nv_embed;
COMMENT ON SCHEMA nv_embed IS 'nv_embed: declarations, administration and the machinery behind nv_embed(), nv_search() and the triggers.';
GRANT USAGE ON SCHEMA nv_embed TO PUBLIC;

-- Roles belong to the cluster, so another database of it may have made this one already.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'nv_embed_admin') THEN
        CREATE ROLE nv_embed_admin NOLOGIN;
    END IF;
END
$$;
