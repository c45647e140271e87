"""The first version with a library install."""

from alembic import op

from nv_embed.library import make_data

revision = "0.2.0"
down_revision = None


def upgrade() -> None:
    config = op.get_context().config
    assert config is not None
    make_data(op.get_bind(), config.attributes["schema"], revision)


def downgrade() -> None:
    raise NotImplementedError("there is no version before this one; docs/operations.md says how to remove it")
