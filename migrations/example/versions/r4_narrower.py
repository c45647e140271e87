"""512 dimensions do. A worker cuts the vectors to size; searches go on meanwhile."""

from alembic import op

revision = "r4"
down_revision = "r3"


def upgrade() -> None:
    op.reembed("manual_topic", dim=512, existing_dim=768, finish=True)


def downgrade() -> None:
    op.reembed("manual_topic", dim=768, existing_dim=512, finish=True)
