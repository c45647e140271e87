"""The manual, as every Python has it."""

from pydoc_data.topics import topics

import sqlalchemy as sa
from alembic import op

revision = "r1"
down_revision = None


def upgrade() -> None:
    table = op.create_table("manual_topic", sa.Column("name", sa.Text(), primary_key=True), sa.Column("body", sa.Text(), nullable=False))
    op.bulk_insert(table, [{"name": name, "body": body} for name, body in topics.items()])


def downgrade() -> None:
    op.drop_table("manual_topic")
