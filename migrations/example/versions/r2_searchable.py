"""Topics are found by meaning, and by the first 384 of 768 dimensions."""

from alembic import op

revision = "r2"
down_revision = "r1"


def upgrade() -> None:
    op.create_auto_embedding("manual_topic", "{name}: {body}", dim=768, mode="async")
    op.create_embedding_index("manual_topic", dim=384)


def downgrade() -> None:
    op.drop_embedding_index("manual_topic", dim=384)
    op.drop_auto_embedding("manual_topic")
