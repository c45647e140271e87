"""
What Alembic runs for the library install: the revisions that the database lacks, then the code. `nv_embed.library` calls it, with a connection in the
midst of a transaction. Alembic's table lies in our own schema, so a project's own migrations can run beside it.
"""

from alembic import context

from nv_embed.library import make_code

given = context.config.attributes
context.configure(connection=given["connection"], version_table="alembic_version", version_table_schema="nv_embed")
with context.begin_transaction():
    context.run_migrations()
make_code(given["connection"], given["schema"])
