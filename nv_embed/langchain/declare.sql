SELECT nv_embed.auto_embed(
    %(relation)s::regclass, '{{content}}', target => %(target)s, dim => %(dim)s, model => %(model)s, mode => coalesce(%(mode)s, nv_embed.default_mode()),
    storage => %(storage)s, truncate => %(truncate)s
)
WHERE NOT EXISTS (SELECT FROM nv_embed.embedding AS e WHERE e.relation = %(relation)s::regclass AND e.target = %(target)s)
