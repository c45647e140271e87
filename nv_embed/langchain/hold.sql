-- What makes the vectors, unchanged until the transaction ends; nothing where the column is not auto-embedded.
SELECT h.mode, h.session_mode, h.truncate, h.model, h.revision, h.dim, h.literals, h.columns, e.chunk_tokens IS NOT NULL AS is_in_pieces
FROM nv_embed.hold_embedding(%(relation)s::regclass, %(target)s, %(is_by_name)s) AS h
JOIN nv_embed.embedding AS e ON e.relation = %(relation)s::regclass AND e.target = %(target)s
