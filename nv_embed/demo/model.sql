SELECT name, revision, max_tokens, native_dim, trained_dims, device
FROM nv_embed.models()
WHERE is_default
