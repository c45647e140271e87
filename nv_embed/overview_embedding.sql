-- nv_search is looked for by its owner, who made schema nv_embed too: anybody may have a function of that name in a schema of theirs.
SELECT nv_embed.qualified(e.relation) AS relation, e.target::text AS target, g.model, g.revision, g.dim, g.storage,
    (
        SELECT quote_ident(n.nspname)
        FROM pg_catalog.pg_proc AS p
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_namespace AS o ON o.nspname = 'nv_embed' AND o.nspowner = p.proowner
        WHERE p.proname = 'nv_search'
        LIMIT 1
    ) AS functions,
    (SELECT quote_ident(n.nspname) FROM pg_catalog.pg_extension AS x JOIN pg_catalog.pg_namespace AS n ON n.oid = x.extnamespace WHERE x.extname = 'vector') AS pgvector,
    (SELECT string_agg(format('%%I.%%I', 'nv_embed_hit', k.column_name), ', ' ORDER BY k.place) FROM nv_embed.key_columns(e.relation) AS k) AS key,
    nv_embed.rendered(e.source, 'nv_embed_hit') AS text
FROM nv_embed.embedding AS e
JOIN nv_embed.generation AS g ON g.embedding = e.id AND g.state = 'live'
JOIN pg_catalog.pg_class AS c ON c.oid = e.relation
WHERE nv_embed.qualified(e.relation) = %(relation)s AND e.target = %(target)s
