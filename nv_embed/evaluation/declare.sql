-- Title, space and text are what public figures embed.

SELECT nv_embed.auto_embed(
    %(relation)s::regclass, source => '{title} {body}', model => %(model)s, mode => 'sync', storage => %(storage)s,
    chunk_tokens => %(chunk_tokens)s, chunk_overlap => %(chunk_overlap)s, truncate => 'END'
)
