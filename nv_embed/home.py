"""
Where the private servers live.

Everything that `nv-embed up` and `make setup` leave behind is under one folder, the home: PostgreSQL's tree with our extension in it (`pgroot/`), the
data (`data/`), sockets (`run/`), logs (`log/`) and the state of what runs (`state.json`). It is `.nv_embed/` in the checkout, unless the user that
Postgres runs as cannot get there: a checkout under /root is closed to everybody else.

Set-up asks this file before any package is installed, so it needs the standard library only: `python3 -m nv_embed.home [NAME]`.

Environment: NV_EMBED_HOME names another home; PostgreSQL's tree stays the checkout's one unless NV_EMBED_PGROOT names another too.
"""

import hashlib
import os
import pwd
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

SYSTEM_HOMES = Path("/var/lib/nv_embed")

POSTGRES_USER = "postgres"


class NotSetUp(Exception):
    """Something that `make setup` installs is missing."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: run `make setup`")


def checkout() -> Path:
    """The folder that holds this library: the repository's root when it is installed as `make setup` does it."""
    return Path(__file__).resolve().parent.parent


def home() -> Path:
    """The folder of the private servers. It need not exist yet: `create` makes it."""
    chosen = os.environ.get("NV_EMBED_HOME")
    return Path(chosen).absolute() if chosen else _own_home()[0]


def why() -> str | None:
    """Why the home is not in the checkout; None where it is, or where the caller chose it."""
    return None if os.environ.get("NV_EMBED_HOME") else _own_home()[1]


def pgroot() -> Path:
    """The private copy of PostgreSQL's tree, in which `usr/lib/postgresql/…` and `usr/share/postgresql/…` keep their places."""
    chosen = os.environ.get("NV_EMBED_PGROOT")
    return Path(chosen).absolute() if chosen else _own_home()[0] / "pgroot"


def pg_bin(name: str) -> Path:
    """One of PostgreSQL's programs in `pgroot`, of the newest version there.

    Raises:
        NotSetUp: it is not there.
    """
    found = list(pgroot().glob(f"usr/lib/postgresql/*/bin/{name}"))
    if not found:
        raise NotSetUp(f"PostgreSQL's {name} is not in {pgroot()}")
    return max(found, key=lambda program: float(program.parent.parent.name))


def postgres_user() -> str | None:
    """The user that Postgres must run as: it refuses root. None where that is the caller already."""
    return POSTGRES_USER if os.geteuid() == 0 else None


def create() -> Path:
    """Make the home and its folders where they are missing, each with the owner and mode that it needs.

    The caller owns the home. `run/` belongs to the user of Postgres, who makes its socket there and connects to the sidecar's: others may not enter.

    Raises:
        NotSetUp: the user of Postgres does not exist.
        OSError: a folder cannot be made.
    """
    top = home()
    for folder in reversed([top, *top.parents]):
        _make(folder, 0o755)
    _make(top / "log", 0o755)
    _make(top / "run", 0o700)
    give_to_postgres(top / "run")
    return top


def _make(folder: Path, mode: int) -> None:
    """Make one folder, unless it is there. Its mode is set explicitly: a strict umask must not lock Postgres out."""
    try:
        folder.mkdir()
    except FileExistsError:
        return
    folder.chmod(mode)


def give_to_postgres(path: Path) -> None:
    """Make the user that Postgres runs as the owner of this file or folder.

    Raises:
        NotSetUp: that user does not exist.
    """
    user = postgres_user()
    if user is None:
        return
    try:
        shutil.chown(path, user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        raise NotSetUp(f"the system has no user {user}") from None


def can_enter(user: str, directory: Path) -> bool:
    """Whether this user can enter a folder. Tried rather than computed: modes, groups, access lists and mounts all have a say.

    A user that set-up has yet to make is tried as anybody else.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    try:
        tried = subprocess.run(
            ["test", "-x", directory], user=entry.pw_uid, group=entry.pw_gid, extra_groups=groups, stdin=subprocess.DEVNULL, check=False
        )
    except OSError:
        return False
    return tried.returncode == 0


@cache
def _own_home() -> tuple[Path, str | None]:
    """The home of this checkout, and why it is not inside of it."""
    top = checkout()
    inside = top / ".nv_embed"
    nearest = inside if inside.is_dir() else top
    elsewhere = hashlib.sha256(os.fsencode(top)).hexdigest()[:12]
    user = postgres_user()
    if user is not None:
        if can_enter(user, nearest):
            return inside, None
        return SYSTEM_HOMES / elsewhere, f"user {user}, who runs Postgres, cannot enter {nearest}"
    if os.access(nearest, os.W_OK | os.X_OK):
        return inside, None
    states = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return states / "nv_embed" / elsewhere, f"{nearest} is not yours to write to"


def program_name() -> str:
    """What to type to run `nv-embed`: its name where the shell finds it, else its path."""
    program, name = Path(sys.executable).with_name("nv-embed"), "nv-embed"
    found = shutil.which(name)
    if not program.exists() or (found is not None and Path(found).samefile(program)):
        return name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)


def main(arguments: list[str]) -> int:
    """Print one of the places above, for the Makefile and set-up."""
    answers = {
        "home": home,
        "why": lambda: why() or "",
        "pgroot": pgroot,
        "pg_config": lambda: pg_bin("pg_config"),
        "user": lambda: postgres_user() or "",
        "create": create,
    }
    name = arguments[0] if arguments else "home"
    if name not in answers or len(arguments) > 1:
        print(f"usage: python3 -m nv_embed.home [{'|'.join(answers)}]", file=sys.stderr)
        return 2
    try:
        print(answers[name]())
    except (NotSetUp, OSError) as error:
        print(f"nv_embed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
