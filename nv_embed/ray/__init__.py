"""
Bulk re-embedding by a Ray Data job.

In:  a table to re-embed, and a Ray cluster      Out: its next generation, filled
"""

from nv_embed.ray.job import Failed, reembed
from nv_embed.ray.settings import Settings

__all__ = ["Failed", "Settings", "reembed"]
