-- status: how far every embedding is, and what failed. Both show what their reader may see: declarations are public, jobs are their table's owner's.

CREATE OR REPLACE VIEW nv_embed.status WITH (security_invoker) AS
SELECT e.relation, e.target, g.model, g.revision, g.dim, g.storage, e.mode,
    CASE WHEN b.counted IS NOT FALSE THEN t.rows END AS rows,
    CASE WHEN b.counted IS NOT FALSE THEN t.vectors - t.stale END AS embedded,
    t.jobs - f.failed AS pending,
    f.failed,
    CASE WHEN b.counted IS NOT FALSE THEN coalesce((t.vectors - t.stale)::float8 / nullif(t.rows - t.blank, 0), 1) END AS coverage,
    clock_timestamp() - q.queued_at AS oldest_pending_age,
    w.rate,
    CASE WHEN t.jobs > f.failed THEN make_interval(secs => (t.jobs - f.failed) / nullif(w.rate, 0)) END AS eta,
    CASE WHEN b.counted IS NOT FALSE THEN t.blank END AS blank,
    b.generation IS NOT NULL AS backfilling, g.chunks
FROM nv_embed.embedding AS e
JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
LEFT JOIN nv_embed.backfill AS b ON b.generation = g.id
CROSS JOIN LATERAL (
    SELECT coalesce(sum(s.rows), 0)::bigint AS rows, coalesce(sum(s.blank), 0)::bigint AS blank, coalesce(sum(s.vectors), 0)::bigint AS vectors,
        coalesce(sum(s.jobs), 0)::bigint AS jobs, coalesce(sum(s.stale), 0)::bigint AS stale
    FROM nv_embed.tally AS s WHERE s.generation = g.id
) AS t
CROSS JOIN LATERAL (SELECT count(*) AS failed FROM nv_embed.job AS j WHERE j.generation = g.id AND j.retry_at = 'infinity') AS f
LEFT JOIN LATERAL (
    SELECT least(
        (SELECT j.queued_at FROM nv_embed.job AS j WHERE j.generation = g.id AND j.retry_at IS NULL ORDER BY j.id LIMIT 1),
        (SELECT min(j.queued_at) FROM nv_embed.job AS j WHERE j.generation = g.id AND j.retry_at < 'infinity')
    ) AS queued_at
) AS q ON true
CROSS JOIN LATERAL (SELECT nv_embed.rate(g.id, e.relation) AS rate) AS w
WHERE g.id IN (SELECT nv_embed.visible_generations()) AND EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = e.relation);

COMMENT ON VIEW nv_embed.status IS 'How far each embedding is; counts are exact and cost no look at the table. NULL is what a new declaration has not counted yet.';
COMMENT ON COLUMN nv_embed.status.embedded IS 'Rows that have the vector of their present text.';
COMMENT ON COLUMN nv_embed.status.pending IS 'Rows that wait for a worker; while backfilling is true, more may be found.';
COMMENT ON COLUMN nv_embed.status.failed IS 'Rows given up: nv_embed.failures says why, nv_embed.retry() tries again.';
COMMENT ON COLUMN nv_embed.status.coverage IS 'Embedded rows, as a fraction of those with content.';
COMMENT ON COLUMN nv_embed.status.chunks IS 'The chunk table, where texts are cut into pieces.';
COMMENT ON COLUMN nv_embed.status.rate IS 'Rows a second that the workers embed now; 0 on a standby, where nobody can tell.';

CREATE OR REPLACE VIEW nv_embed.failures WITH (security_invoker) AS
SELECT e.relation, e.target, j.key::text[] AS key, l.entry ->> 'error' AS error, l.entry ->> 'message' AS message, j.attempts,
    (j.history -> 0 ->> 'at')::timestamptz AS first_failed_at, (l.entry ->> 'at')::timestamptz AS failed_at, j.history
FROM nv_embed.job AS j
JOIN nv_embed.generation AS g ON g.id = j.generation
JOIN nv_embed.embedding AS e ON e.id = g.embedding
CROSS JOIN LATERAL (SELECT j.history -> -1 AS entry) AS l
WHERE j.retry_at = 'infinity';

COMMENT ON VIEW nv_embed.failures IS 'Rows whose text could not be embedded, with what was tried; nv_embed.retry() tries again.';

GRANT SELECT ON nv_embed.status, nv_embed.failures TO PUBLIC;
