"""
Alembic: embeddings, their indexes and their re-embeddings in migrations.

An operation is a value (what is to be done, and what undoes it), an implementation (how) and a rendering (how a migration script says it). All of
them run in a database and offline, where `alembic upgrade --sql` prints them for psql. Autogenerate compares the embeddings of the metadata with
those of the database, and keeps Alembic's own comparison away from what nv_embed has made there.

In:  `import nv_embed.alembic` in env.py      Out: `op.create_auto_embedding` and its companions, and autogenerate that knows of them
"""

from nv_embed.alembic import autogenerate
from nv_embed.alembic.embedding import AlterAutoEmbedding, CreateAutoEmbedding, DropAutoEmbedding
from nv_embed.alembic.index import CreateEmbeddingIndex, DropEmbeddingIndex
from nv_embed.alembic.install import CreateExtension, DropExtension, InstallLibrary, UninstallLibrary
from nv_embed.alembic.reembedding import CutOverReembedding, FinishReembedding, Reembed, RollBackReembedding

__all__ = [
    "AlterAutoEmbedding",
    "CreateAutoEmbedding",
    "CreateEmbeddingIndex",
    "CreateExtension",
    "CutOverReembedding",
    "DropAutoEmbedding",
    "DropEmbeddingIndex",
    "DropExtension",
    "FinishReembedding",
    "InstallLibrary",
    "Reembed",
    "RollBackReembedding",
    "UninstallLibrary",
    "autogenerate",
]
