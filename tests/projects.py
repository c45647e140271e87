"""
Projects with Alembic, as people have them: a folder with an env.py and revisions, a model, and a database.
"""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import alembic
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, create_engine
from sqlalchemy.pool import NullPool

import nv_embed.alembic  # noqa: F401

ENV = """
from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

import nv_embed.alembic

given = context.config.attributes
options = {"target_metadata": given["metadata"], "transaction_per_migration": True, **given["options"]}

if context.is_offline_mode():
    context.configure(url=given["url"], literal_binds=True, dialect_opts={"paramstyle": "named"}, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    with create_engine(given["url"], poolclass=NullPool).connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

REVISION = '''
"""{message}"""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = {before!r}


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
'''


@dataclass
class Project:
    """A folder of Alembic's.

    Attributes:
        options: for `context.configure`.
        driver: SQLAlchemy's name of it.
    """

    folder: Path
    dsn: str
    metadata: MetaData
    options: dict[str, Any] = field(default_factory=dict)
    revisions: list[str] = field(default_factory=list)
    driver: str = "psycopg"

    def __post_init__(self) -> None:
        (self.folder / "versions").mkdir(parents=True)
        (self.folder / "env.py").write_text(ENV)
        template = Path(alembic.__file__).parent / "templates" / "generic" / "script.py.mako"
        (self.folder / "script.py.mako").write_text(template.read_text())

    @property
    def url(self) -> str:
        return self.dsn.replace("postgresql://", f"postgresql+{self.driver}://", 1)

    def config(self, output: StringIO | None = None) -> Config:
        config = Config(output_buffer=output) if output is not None else Config()
        config.set_main_option("script_location", str(self.folder))
        config.attributes.update(url=self.url, metadata=self.metadata, options=self.options)
        return config

    def write(self, upgrade: str, downgrade: str = "pass") -> str:
        """A revision by hand; its number."""
        revision = f"r{len(self.revisions) + 1}"
        indented = [body.strip().replace("\n", "\n    ") for body in (upgrade, downgrade)]
        before = self.revisions[-1] if self.revisions else None
        text = REVISION.format(message=revision, revision=revision, before=before, upgrade=indented[0], downgrade=indented[1])
        (self.folder / "versions" / f"{revision}.py").write_text(text)
        self.revisions.append(revision)
        return revision

    def autogenerate(self) -> str:
        """A revision by Alembic; its text."""
        revision = f"r{len(self.revisions) + 1}"
        made = command.revision(self.config(), revision, autogenerate=True, rev_id=revision)
        self.revisions.append(revision)
        return Path(made.path).read_text()  # type: ignore[union-attr]

    def upgrade(self, revision: str = "head") -> None:
        command.upgrade(self.config(), revision)

    def downgrade(self, revision: str = "base") -> None:
        command.downgrade(self.config(), revision)

    def check(self) -> None:
        command.check(self.config())

    def diff(self) -> list[Any]:
        with create_engine(self.url, poolclass=NullPool).connect() as connection:
            return list(compare_metadata(MigrationContext.configure(connection, opts=self.options), self.metadata))

    def printed(self, move: Callable[..., None], revisions: str) -> str:
        """What `--sql` prints: of `command.upgrade` or `command.downgrade`."""
        output = StringIO()
        move(self.config(output), revisions, sql=True)
        return output.getvalue()

    def psql(self, script: str) -> str:
        file = self.folder / "script.sql"
        file.write_text(script)
        done = subprocess.run(
            ["psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-f", str(file), self.dsn], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{done.stderr}\n{script[-3000:]}"
        return done.stdout + done.stderr
