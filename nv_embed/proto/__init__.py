"""
The wire format: `nv_embed.proto` and what `make proto` generates from it.
"""
