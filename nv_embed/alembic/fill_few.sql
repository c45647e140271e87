-- A table without rows needs no worker, and in mode sync one with few rows none either: a fresh database goes through all of its migrations by itself.
SELECT nv_embed.refresh(e.relation, e.target)
FROM nv_embed.embedding AS e
JOIN nv_embed.reembedding AS r ON r.embedding = e.id AND r.state = 'backfilling'
WHERE e.relation = @relation@::regclass AND e.target = @target@
    AND (SELECT count(*) FROM (SELECT FROM @table@ LIMIT 1001) AS s) <= CASE
        WHEN e.mode = 'sync' AND NOT EXISTS (
            SELECT FROM nv_embed.worker AS w WHERE w.seen_at > clock_timestamp() - interval '15 seconds' AND nv_embed.may_embed(w.role_name, e.relation)
        ) THEN 1000
        ELSE 0
    END
