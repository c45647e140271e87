-- What a database has of nv_embed, in rows of kind, name and description, by name and not by oid. The search_path is pg_catalog alone, so that every name is
-- written with its schema.

-- Privileges as they work, granted or by default. An owner is called so, because the two installs have different ones.
CREATE OR REPLACE FUNCTION pg_temp.privileges(acl aclitem[], owner oid) RETURNS text
LANGUAGE sql STABLE
RETURN (
    SELECT string_agg(line, ', ' ORDER BY line COLLATE "C")
    FROM (
        SELECT concat(
                CASE a.grantee WHEN 0 THEN 'PUBLIC' WHEN owner THEN 'owner' ELSE pg_get_userbyid(a.grantee) END, ' ', a.privilege_type,
                CASE WHEN a.is_grantable THEN ' grantable' END
            ) AS line
        FROM aclexplode(acl) AS a
    ) AS lines
);

CREATE OR REPLACE FUNCTION pg_temp.is_ours(schema oid, name name) RETURNS boolean
LANGUAGE sql STABLE
RETURN (SELECT n.nspname = 'nv_embed' OR n.nspname = 'public' AND name LIKE 'nv\_%' FROM pg_namespace AS n WHERE n.oid = schema);

SELECT 'schema' AS kind, n.nspname::text AS name,
    concat_ws(E'\n', pg_temp.privileges(coalesce(n.nspacl, acldefault('n', n.nspowner)), n.nspowner), obj_description(n.oid, 'pg_namespace')) AS description
FROM pg_namespace AS n
WHERE n.nspname = 'nv_embed'

UNION ALL
SELECT 'relation', c.oid::regclass::text,
    concat_ws(
        E'\n', 'kind ' || c.relkind::text, 'persistence ' || c.relpersistence::text, 'row security ' || c.relrowsecurity || ' ' || c.relforcerowsecurity,
        'options ' || (SELECT string_agg(option, ', ' ORDER BY option COLLATE "C") FROM unnest(c.reloptions) AS option),
        CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) END,
        pg_temp.privileges(coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, c.relowner)), c.relowner),
        obj_description(c.oid, 'pg_class')
    )
FROM pg_class AS c
WHERE pg_temp.is_ours(c.relnamespace, c.relname) AND c.relkind NOT IN ('i', 'I')

UNION ALL
SELECT 'column', c.oid::regclass || '.' || quote_ident(a.attname),
    concat_ws(
        E'\n', 'place ' || rank() OVER (PARTITION BY c.oid ORDER BY a.attnum), format_type(a.atttypid, a.atttypmod), 'not null ' || a.attnotnull,
        'default ' || pg_get_expr(d.adbin, d.adrelid), 'identity ' || a.attidentity::text, 'generated ' || a.attgenerated::text,
        'collation ' || a.attcollation::regcollation, 'storage ' || a.attstorage::text, pg_temp.privileges(a.attacl, c.relowner), col_description(c.oid, a.attnum)
    )
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE pg_temp.is_ours(c.relnamespace, c.relname) AND c.relkind NOT IN ('i', 'I', 'S') AND a.attnum > 0 AND NOT a.attisdropped

UNION ALL
SELECT 'constraint', coalesce(nullif(k.conrelid, 0)::regclass::text, k.contypid::regtype::text) || '.' || quote_ident(k.conname),
    concat_ws(E'\n', pg_get_constraintdef(k.oid), 'valid ' || k.convalidated, obj_description(k.oid, 'pg_constraint'))
FROM pg_constraint AS k
WHERE pg_temp.is_ours(k.connamespace, k.conname)

UNION ALL
SELECT 'index', i.indexrelid::regclass::text,
    concat_ws(E'\n', pg_get_indexdef(i.indexrelid), 'valid ' || i.indisvalid, 'clustered ' || i.indisclustered, obj_description(c.oid, 'pg_class'))
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE pg_temp.is_ours(c.relnamespace, c.relname)

UNION ALL
SELECT 'sequence', c.oid::regclass::text,
    concat_ws(
        ' ', format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
        (
            SELECT 'of ' || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
            FROM pg_depend AS d
            WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0
        )
    )
FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid
WHERE pg_temp.is_ours(c.relnamespace, c.relname)

UNION ALL
SELECT 'policy', c.oid::regclass || '.' || quote_ident(p.polname),
    concat_ws(
        E'\n', 'for ' || p.polcmd::text, 'permissive ' || p.polpermissive,
        'to ' || (SELECT string_agg(CASE role WHEN 0 THEN 'public' ELSE pg_get_userbyid(role) END, ', ') FROM unnest(p.polroles) AS role),
        'using ' || pg_get_expr(p.polqual, p.polrelid), 'check ' || pg_get_expr(p.polwithcheck, p.polrelid), obj_description(p.oid, 'pg_policy')
    )
FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
WHERE pg_temp.is_ours(c.relnamespace, c.relname)

UNION ALL
SELECT 'trigger', c.oid::regclass || '.' || quote_ident(t.tgname), concat_ws(E'\n', pg_get_triggerdef(t.oid), 'enabled ' || t.tgenabled::text)
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
WHERE pg_temp.is_ours(c.relnamespace, c.relname) AND NOT t.tgisinternal

UNION ALL
SELECT 'function', p.oid::regprocedure::text,
    concat_ws(
        E'\n', pg_get_functiondef(p.oid), pg_temp.privileges(coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner), obj_description(p.oid, 'pg_proc')
    )
FROM pg_proc AS p
WHERE pg_temp.is_ours(p.pronamespace, p.proname)

UNION ALL
SELECT 'type', t.oid::regtype::text,
    concat_ws(
        E'\n', 'kind ' || t.typtype::text, format_type(nullif(t.typbasetype, 0), t.typtypmod), 'not null ' || t.typnotnull, 'default ' || t.typdefault,
        obj_description(t.oid, 'pg_type')
    )
FROM pg_type AS t
WHERE pg_temp.is_ours(t.typnamespace, t.typname) AND t.typtype NOT IN ('b', 'c')

UNION ALL
SELECT 'member', pg_describe_object(d.classid, d.objid, d.objsubid), ''
FROM pg_depend AS d JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
WHERE e.extname = 'nv_embed' AND d.deptype = 'e'

UNION ALL
SELECT 'extension', e.extname,
    concat_ws(
        E'\n', e.extversion, e.extnamespace::regnamespace, e.extrelocatable,
        (
            SELECT string_agg(line, ', ' ORDER BY line COLLATE "C")
            FROM pg_depend AS d CROSS JOIN LATERAL pg_describe_object(d.refclassid, d.refobjid, 0) AS line
            WHERE d.classid = 'pg_extension'::regclass AND d.objid = e.oid
        ),
        obj_description(e.oid, 'pg_extension')
    )
FROM pg_extension AS e
WHERE e.extname = 'nv_embed'

UNION ALL
SELECT 'dumped', r.relation::regclass::text, 'where ' || r.condition
FROM pg_extension AS e CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS r (relation, condition)
WHERE e.extname = 'nv_embed'

UNION ALL
SELECT 'initial privileges', pg_describe_object(i.classoid, i.objoid, i.objsubid), pg_temp.privileges(i.initprivs, 10)
FROM pg_init_privs AS i
JOIN pg_depend AS d ON d.classid = i.classoid AND d.objid = i.objoid AND d.deptype = 'e'
JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid AND e.extname = 'nv_embed'
