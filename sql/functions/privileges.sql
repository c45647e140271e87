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
        WHERE p.oid IN (
            'nv_embed.configure(text, real, text, text, text, text, boolean)'::regprocedure, pg_catalog.to_regprocedure('nv_embed.start_session()'),
            pg_catalog.to_regprocedure('nv_embed.restrict_to_users(boolean)')
        )
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

-- Where nobody could make the roles (`namespace.sql`), what they may do is its owner's. What is granted already is not granted again: a grant by this
-- script would make all that was changed since part of the extension, and pg_dump would leave it out.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT p.oid::regprocedure AS function, r.rolname AS role_name
        FROM (
            VALUES ('nv_embed_admin', 'nv_embed.configure(text, real, text, text, text, text, boolean)'), ('nv_embed_admin', 'nv_embed.restrict_to_users(boolean)')
        ) AS g (role_name, function)
        JOIN pg_catalog.pg_roles AS r ON r.rolname = g.role_name
        JOIN pg_catalog.pg_proc AS p ON p.oid = pg_catalog.to_regprocedure(g.function)
        WHERE NOT pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE')
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %I', granted.function, granted.role_name);
    END LOOP;
END
$$;

-- The two roles may have texts sent whatever the public may. What came with an update is as what was there.
DO $$
DECLARE
    sending regprocedure;
    role_name name;
    is_restricted boolean;
BEGIN
    IF pg_catalog.to_regprocedure('nv_embed.sending_functions()') IS NULL THEN
        RETURN;
    END IF;
    is_restricted := NOT pg_catalog.has_function_privilege('public', '@extschema@.nv_embed(text, int, text, text, text)', 'EXECUTE');
    FOR sending IN SELECT nv_embed.sending_functions() LOOP
        FOR role_name IN
            SELECT r.rolname
            FROM pg_catalog.pg_roles AS r
            WHERE r.rolname IN ('nv_embed_user', 'nv_embed_worker') AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_proc AS p, pg_catalog.aclexplode(p.proacl) AS a WHERE p.oid = sending AND a.grantee = r.oid
            )
        LOOP
            EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %I', sending, role_name);
        END LOOP;
        IF is_restricted AND pg_catalog.has_function_privilege('public', sending, 'EXECUTE') THEN
            EXECUTE pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', sending);
        END IF;
    END LOOP;
END
$$;
