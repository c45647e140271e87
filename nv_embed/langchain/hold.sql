-- What makes the vectors, unchanged until the transaction ends; nothing where the column is not auto-embedded. `is_plain`: the columns that are embedded
-- are read as they were written, which those of other types, padded, rounded or spelled in Postgres's own way, are not.
SELECT h.mode, h.session_mode, h.truncate, h.model, h.revision, h.dim, h.literals, h.columns, e.chunk_tokens IS NOT NULL AS is_in_pieces,
    NOT EXISTS (
        SELECT FROM pg_attribute AS a
        WHERE a.attrelid = e.relation AND a.attname = ANY (h.columns)
            AND (a.atttypid NOT IN ('text'::regtype, 'varchar'::regtype) OR a.attgenerated <> '')
    ) AS is_plain
FROM nv_embed.hold_embedding(%(relation)s::regclass, %(target)s, %(is_by_name)s) AS h
JOIN nv_embed.embedding AS e ON e.relation = %(relation)s::regclass AND e.target = %(target)s
