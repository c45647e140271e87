"""An index of all dimensions too."""

from alembic import op

revision = "r5"
down_revision = "r4"


def upgrade() -> None:
    op.create_embedding_index("manual_topic")


def downgrade() -> None:
    op.drop_embedding_index("manual_topic")
