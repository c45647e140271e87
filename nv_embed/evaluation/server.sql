-- The versions that figures depend on, and the schemas whose functions a search names.

SELECT current_setting('server_version'),
    (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'vector'),
    (SELECT e.extversion FROM pg_extension AS e WHERE e.extname = 'nv_embed'),
    (SELECT string_agg(DISTINCT quote_ident(n.nspname), ', ') FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
     WHERE e.extname IN ('vector', 'nv_embed'))
