"""
What the check of the extension's scripts finds; `make check` runs it on the real ones.
"""

import subprocess
import sys
from pathlib import Path

import pytest

EXTENSION = Path(__file__).resolve().parents[2] / "extension"

UNPINNED = "CREATE FUNCTION nv_embed.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
QUOTED_PATH = "CREATE FUNCTION nv_embed.f() RETURNS int LANGUAGE sql SECURITY DEFINER SET search_path = 'public, pg_temp' AS 'SELECT 1'"
ATOMIC = "CREATE FUNCTION nv_embed.f() RETURNS int LANGUAGE sql SECURITY DEFINER RETURN 1"
CALLED = "CREATE FUNCTION nv_embed.f() RETURNS text LANGUAGE sql AS $$ SELECT lower('A') $$"
UNREADABLE = "CREATE FUNCTION nv_embed.f() RETURNS int LANGUAGE plpgsql AS $$ DECLARE s nv_embed.settings; BEGIN s.token := 'x'; RETURN 1; END $$"
PINNED = UNREADABLE.replace("LANGUAGE plpgsql", "LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp")


def spotted(tmp_path: Path, statement: str) -> str:
    script = tmp_path / "script.sql"
    script.write_text(f"CREATE SCHEMA nv_embed;\n{statement};\n")
    found = subprocess.run([sys.executable, EXTENSION / "spot.py", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1, "what excuses nothing in this script is an error too"
    return "\n".join(line for line in found.stderr.splitlines() if line.startswith("script.sql: "))


@pytest.mark.parametrize(
    ("statement", "code"),
    [(UNPINNED, "PS003"), (QUOTED_PATH, "PS004"), (ATOMIC, "PS003"), (CALLED, "PS016"), (CALLED, "PS005"), (UNREADABLE, "unread")],
)
def test_a_name_that_others_could_take_over_is_found(tmp_path: Path, statement: str, code: str) -> None:
    assert f"script.sql: {code}: " in spotted(tmp_path, statement)


def test_a_body_that_cannot_be_read_is_none_where_its_search_path_is_pinned(tmp_path: Path) -> None:
    assert spotted(tmp_path, PINNED) == ""
