-- The tables that evaluations have made in a schema.

SELECT format('%%I.%%I', n.nspname, c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relkind = 'r' AND c.relname LIKE 'docs\_%%'
  AND NOT EXISTS (SELECT FROM nv_embed.generation AS g WHERE g.chunks = c.oid)
