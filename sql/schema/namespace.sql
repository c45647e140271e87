-- namespace: the schema of everything that is not called every day, and the roles that may administer it, embed for it and have texts embedded.

CREATE SCHEMA nv_embed;
COMMENT ON SCHEMA nv_embed IS 'nv_embed: declarations, administration and the machinery behind nv_embed(), nv_search() and the triggers.';
GRANT USAGE ON SCHEMA nv_embed TO PUBLIC;

-- Roles belong to the cluster: another database of it may have made them already, and whoever installs the library may not be allowed to. Nothing here
-- relies on them.
DO $$
DECLARE
    role_name name;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['nv_embed_admin', 'nv_embed_worker', 'nv_embed_user'] LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = role_name)
            AND EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = current_user AND (rolsuper OR rolcreaterole)) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', role_name);
        END IF;
    END LOOP;
END
$$;

-- What is unqualified here is looked up where pgvector's types are, since their schema cannot be written in an extension's script before PostgreSQL 16. Whoever
-- may create there can offer what matches better.
DO $$
DECLARE
    schema_name name;
BEGIN
    FOR schema_name IN
        SELECT n.nspname
        FROM pg_catalog.pg_namespace AS n
        WHERE pg_catalog.has_schema_privilege('public', n.oid, 'CREATE')
            AND (n.oid = '@extschema@'::regnamespace OR n.oid = (SELECT e.extnamespace FROM pg_catalog.pg_extension AS e WHERE e.extname = 'vector'))
    LOOP
        RAISE WARNING 'every role may create objects in schema %, and could have nv_embed call its own', schema_name
            USING HINT = pg_catalog.format(
                'install into a database without such objects, after REVOKE CREATE ON SCHEMA %I FROM PUBLIC, as it is by default since PostgreSQL 15', schema_name
            );
    END LOOP;
END
$$;
