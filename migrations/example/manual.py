"""
The model of the example, as its last revision leaves it: what Python's manual says, by topic.
"""

from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from nv_embed.sqlalchemy import EmbeddingIndex, embedded_column


class Base(DeclarativeBase):
    pass


class Topic(Base):
    __tablename__ = "manual_topic"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    embedding = embedded_column("{name}: {body}", dim=512, truncate="END", indexes=[EmbeddingIndex(), EmbeddingIndex(dim=384)])


metadata = Base.metadata
