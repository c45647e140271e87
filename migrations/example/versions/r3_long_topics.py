"""What is longer than the model reads is cut at its end."""

from alembic import op

revision = "r3"
down_revision = "r2"


def upgrade() -> None:
    op.alter_auto_embedding("manual_topic", truncate="END", existing_truncate="NONE")


def downgrade() -> None:
    op.alter_auto_embedding("manual_topic", truncate="NONE", existing_truncate="END")
