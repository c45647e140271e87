"""
SQLAlchemy: embeddings in models, flushes and queries.

In:  `embedded_column("{title}: {body}", dim=768)` on a model      Out: rows written with their vectors, and found by meaning
"""

from nv_embed.sqlalchemy.column import Embedded, embedded_column
from nv_embed.sqlalchemy.embedding import AutoEmbedding, Embedding, EmbeddingIndex, declared
from nv_embed.sqlalchemy.search import search
from nv_embed.sqlalchemy.session import embed_with

__all__ = ["AutoEmbedding", "Embedded", "Embedding", "EmbeddingIndex", "declared", "embed_with", "embedded_column", "search"]
