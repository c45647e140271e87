-- namespace: the schema of everything that is not called every day, and the roles that may administer it and embed for it.

CREATE SCHEMA nv_embed;
COMMENT ON SCHEMA nv_embed IS 'nv_embed: declarations, administration and the machinery behind nv_embed(), nv_search() and the triggers.';
GRANT USAGE ON SCHEMA nv_embed TO PUBLIC;

-- Roles belong to the cluster: another database of it may have made them already, and whoever installs the library may not be allowed to. Nothing here
-- relies on them.
DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['nv_embed_admin', 'nv_embed_worker'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name)
            AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = current_user AND (rolsuper OR rolcreaterole)) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;
