"""
Where the private servers live.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import shared_folder

from nv_embed import home

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be tried as root")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    with shared_folder() as path:
        yield path


def ask(*arguments: str, checkout: Path = ROOT, **env: str) -> "subprocess.CompletedProcess[str]":
    """What `python3 -m nv_embed.home` says with no package installed: -S leaves site-packages out."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NV_EMBED_")}
    return subprocess.run(
        [sys.executable, "-S", "-m", "nv_embed.home", *arguments],
        cwd="/",
        env={**clean, **env, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )


def copy_of_the_library(folder: Path) -> Path:
    (folder / "nv_embed").mkdir(parents=True)
    for name in ("__init__.py", "home.py"):
        shutil.copy(ROOT / "nv_embed" / name, folder / "nv_embed")
    return folder


def test_needs_the_standard_library_only() -> None:
    said = ask()
    assert (said.returncode, said.stderr) == (0, "")
    assert Path(said.stdout.strip()).is_absolute()


def test_is_in_a_checkout_that_the_servers_user_can_enter(folder: Path) -> None:
    checkout = copy_of_the_library(folder / "checkout")
    assert ask(checkout=checkout).stdout.strip() == str(checkout / ".nv_embed")
    assert ask("pgroot", checkout=checkout).stdout.strip() == str(checkout / ".nv_embed/pgroot")
    assert ask("why", checkout=checkout).stdout.strip() == ""


@as_root
def test_is_elsewhere_when_a_folder_above_the_checkout_is_closed(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    checkout = copy_of_the_library(closed / "checkout")
    found = Path(ask(checkout=checkout).stdout.strip())
    assert found.parent == Path("/var/lib/nv_embed")
    assert len(found.name) == 12
    assert "cannot enter" in ask("why", checkout=checkout).stdout


@as_root
def test_two_closed_checkouts_do_not_share_a_home(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    first, second = (ask(checkout=copy_of_the_library(closed / name)).stdout for name in ("one", "two"))
    assert first != second


def test_the_environment_moves_the_home_and_not_postgres(folder: Path) -> None:
    elsewhere = str(folder / "elsewhere")
    assert ask(NV_EMBED_HOME=elsewhere).stdout.strip() == elsewhere
    assert ask("pgroot", NV_EMBED_HOME=elsewhere).stdout == ask("pgroot").stdout
    assert ask("pgroot", NV_EMBED_PGROOT=elsewhere).stdout.strip() == elsewhere


def test_create_opens_the_home_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        said = ask("create", NV_EMBED_HOME=str(folder / "a/b"))
    finally:
        os.umask(old)
    assert (said.returncode, said.stderr) == (0, "")
    modes = {name: (folder / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/log", "a/b/run")}
    assert modes == {"a": 0o755, "a/b": 0o755, "a/b/log": 0o755, "a/b/run": 0o700}


def test_create_leaves_the_mode_of_a_folder_that_is_there(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine").chmod(0o750)
    assert ask("create", NV_EMBED_HOME=str(folder / "mine")).returncode == 0
    assert (folder / "mine").stat().st_mode & 0o777 == 0o750


@as_root
def test_create_gives_the_sockets_folder_to_the_servers_user(folder: Path) -> None:
    ask("create", NV_EMBED_HOME=str(folder / "home"))
    assert (folder / "home/run").owner() == home.POSTGRES_USER
    assert (folder / "home/log").owner() == "root"


def test_the_newest_postgres_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("9.6", "15", "17"):
        (folder / f"usr/lib/postgresql/{version}/bin").mkdir(parents=True)
        (folder / f"usr/lib/postgresql/{version}/bin/postgres").touch()
    monkeypatch.setenv("NV_EMBED_PGROOT", str(folder))
    assert home.pg_bin("postgres") == folder / "usr/lib/postgresql/17/bin/postgres"


def test_a_missing_postgres_says_what_to_run(folder: Path) -> None:
    said = ask("pg_config", NV_EMBED_PGROOT=str(folder))
    assert said.returncode == 1
    assert said.stderr.strip().endswith("run `make setup`")
    assert said.stderr.count("\n") == 1


def test_wrong_usage_exits_with_2() -> None:
    said = ask("nonsense")
    assert said.returncode == 2
    assert "usage" in said.stderr
