SELECT nv_embed.auto_embed('public.python_docs', source => '{name}: {doc}', dim => %(dim)s, truncate => 'END')
