SELECT name, revision, native_dim, trained_dims, declared_dims, max_tokens, device, "precision", is_default
FROM nv_embed.models()
