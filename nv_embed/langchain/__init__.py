"""
LangChain: the embeddings, and a vector store over a table that the database keeps embedded.

In:  documents and questions      Out: rows of a table, embedded by triggers and found by nv_search
"""

from nv_embed.langchain.embeddings import NvEmbeddings
from nv_embed.langchain.store import NvVectorStore

__all__ = ["NvEmbeddings", "NvVectorStore"]
