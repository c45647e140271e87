"""
docs/alembic.md, by somebody who writes its files and types its commands, while a worker runs.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Connection
from installs import Install
from servers import Sidecar
from workers import working

PAGE = Path(__file__).resolve().parents[2] / "docs" / "alembic.md"
PROGRAMS = Path(sys.executable).parent


@pytest.mark.slow
def test_every_block_of_the_page_runs(
    install: Install, own_database: str, connect: Callable[..., Connection], sidecar: Sidecar, tmp_path: Path
) -> None:
    dsn, db = install.dsn(own_database), connect()
    env = {**os.environ, "DATABASE_URL": dsn, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    answers: list[Any] = []

    def shell(block: str) -> None:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"

    def python(block: str) -> None:
        name, text = block.split("\n", 1)
        (tmp_path / name.removeprefix("# ")).write_text(text)

    def sql(block: str) -> None:
        for statement in filter(str.strip, re.split(r";\n", block)):
            cursor = db.execute(statement.encode())
            answers.extend(cursor.fetchall() if cursor.description else [])

    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 15
    with working(dsn, sidecar.address):
        for language, block in blocks:
            {"sh": shell, "python": python, "sql": sql, "text": lambda _: None}[language](block)
    assert answers == [(True,), (384, 2), ("live", 512), (True,), (384, 2)]
    assert db.execute("SELECT dim, embedded FROM nv_embed.status").fetchall() == [(768, 2)]
