-- What a table's declaration has come to: every row with content has a vector, or some failed.

SELECT s.rows, s.embedded, coalesce(s.blank, 0), s.failed, coalesce(s.chunks, s.relation)::text,
    (SELECT f.message FROM nv_embed.failures AS f WHERE f.relation = s.relation LIMIT 1)
FROM nv_embed.status AS s
WHERE s.relation = to_regclass(%(relation)s)
