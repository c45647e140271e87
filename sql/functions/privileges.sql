-- privileges: what the public must not have.
--
-- Whoever is granted anything here, by default privileges that were in force when the extension was made, loses it again.

DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT 'TABLE nv_embed.settings' AS object, a.grantee, c.relowner AS owner
        FROM pg_catalog.pg_class AS c, pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) AS a
        WHERE c.oid = 'nv_embed.settings'::regclass
        UNION
        SELECT 'FUNCTION ' || p.oid::regprocedure, a.grantee, p.proowner
        FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) AS a
        WHERE p.oid IN ('nv_embed.configure(text, real, text, text, text, text, boolean)'::regprocedure, pg_catalog.to_regprocedure('nv_embed.start_session()'))
    LOOP
        IF granted.grantee <> granted.owner THEN
            EXECUTE pg_catalog.format(
                'REVOKE ALL ON %s FROM %s', granted.object,
                CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(granted.grantee)) END
            );
        END IF;
    END LOOP;
END
$$;

-- Where nobody could make the roles (`namespace.sql`), configuring is its owner's.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'nv_embed_admin') THEN
        GRANT EXECUTE ON FUNCTION nv_embed.configure(text, real, text, text, text, text, boolean) TO nv_embed_admin;
    END IF;
END
$$;
