"""
What Alembic runs for the example. All that embeddings need of an env.py is the import of nv_embed.alembic, and a transaction for each revision.
"""

import os
from logging.config import fileConfig

from alembic import context
from manual import metadata
from sqlalchemy import create_engine, make_url
from sqlalchemy.pool import NullPool

import nv_embed.alembic  # noqa: F401

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")

options = {"target_metadata": metadata, "transaction_per_migration": True, "version_table": "example_version"}

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    context.configure(url=url, literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
