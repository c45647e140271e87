"""
Every code block of the README and of the pages for users and operators, run in order on a real set-up with the real model.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from servers import shared_folder

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(sys.executable).parent

pytestmark = pytest.mark.minilm


@dataclass
class Reader:
    """Somebody who types what a page says.

    Attributes:
        env: an environment with a home of its own for the private servers.
        answers: what every SQL query answered, in order.
        names: what Python has defined so far.
    """

    env: dict[str, str]
    answers: list[list[Any]] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, block: str) -> None:
        for line in block.splitlines():
            command = line.split("#")[0].replace(".venv/bin/", f"{PROGRAMS}/")
            target = re.fullmatch(r"make (\w+)\s*", command)
            if target is None:
                self.run(command)
            elif target[1] in ("up", "down"):
                self.run(f"{PROGRAMS}/nv-embed {target[1]}")
            else:
                self.run(f"make --dry-run {target[1]}")

    def sql(self, block: str) -> None:
        with psycopg.connect(self.run(f"{PROGRAMS}/nv-embed dsn").strip(), autocommit=True) as connection:
            for statement in re.split(r";\n", block + "\n"):
                if statement.strip():
                    cursor = connection.execute(statement)
                    self.answers.append(cursor.fetchall() if cursor.description else [])

    def python(self, block: str) -> None:
        status = json.loads(self.run(f"{PROGRAMS}/nv-embed status --json"))
        self.names.update(ENDPOINT=status["endpoint"], DSN=status["dsn"], __name__="page")
        exec(compile(block, "page", "exec"), self.names)


@pytest.fixture
def reader() -> Iterator[Reader]:
    with shared_folder() as folder:
        # The make that runs these tests must not hand its own state to those that a page calls.
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        person = Reader({**env, "NV_EMBED_HOME": str(folder / "home")})
        person.run(f"{PROGRAMS}/nv-embed up")
        yield person
        for engine in person.names.values():
            if isinstance(engine, sqlalchemy.Engine):
                engine.dispose()
        person.run(f"{PROGRAMS}/nv-embed down --delete-data")


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "answers"),
    [
        ("README.md", ["Dynamo"]),
        ("docs/quickstart.md", ["Dynamo", "Violin", "Bread", "Violin", "Bread", "Oven", "Sundial"]),
        ("docs/search.md", ["Dynamo", "Bread", "Violin", "Dynamo", "Violin"]),
        ("docs/evaluation.md", []),
        ("docs/reembedding.md", ["backfilling", "Violin", "Bread", "{title}"]),
        ("docs/sqlalchemy.md", []),
        ("docs/langchain.md", []),
        ("docs/http.md", []),
        ("docs/security.md", [384, True]),
        ("docs/scaling.md", []),
        ("docs/ui.md", []),
        ("docs/operations.md", ["all-MiniLM-L6-v2", True, "all-MiniLM-L6-v2", 256, 1, "manuals"]),
    ],
)
def test_every_block_of_the_page_runs(reader: Reader, page: str, answers: list[Any]) -> None:
    found = [block for block in blocks(page) if block[0] != "text"]
    assert len(found) >= 5
    for language, block in found:
        {"sh": reader.shell, "sql": reader.sql, "python": reader.python}[language](block)
    firsts = [answer[0][0] for answer in reader.answers if answer]
    assert [first for first in firsts if first in answers] == answers
