-- Declarations are public; what they have counted, nv_embed.status tells owners and workers only.
SELECT nv_embed.qualified(e.relation) AS relation, e.target::text AS target, g.model, g.revision, g.dim, g.storage, e.mode, s.relation IS NOT NULL AS is_counted,
    s.rows, s.embedded, s.pending, s.failed, s.coverage, extract(epoch FROM s.oldest_pending_age)::float8 AS oldest_pending_s, s.rate,
    extract(epoch FROM s.eta)::float8 AS eta_s, s.backfilling
FROM nv_embed.embedding AS e
JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
JOIN pg_class AS c ON c.oid = e.relation
LEFT JOIN nv_embed.status AS s ON s.relation = e.relation AND s.target = e.target
WHERE s.relation IS NOT NULL OR has_table_privilege(c.oid, 'SELECT')
ORDER BY 1, 2
LIMIT %(most)s
