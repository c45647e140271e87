SELECT nv_embed.qualified(r.relation) AS relation, r.target::text AS target, r.state, r.from_model, r.from_dim, r.from_storage, r.to_model, r.to_dim, r.to_storage,
    r.progress, r.rows, r.embedded, r.pending, r.failed, r.rate, extract(epoch FROM r.eta)::float8 AS eta_s
FROM nv_embed.reembedding_status AS r
WHERE r.ended_at IS NULL
ORDER BY 1, 2, r.id
LIMIT %(most)s
