"""
The file of tokens.

One TOML table a token, by the name of who holds it. The sidecar reads the file, `nv-embed token` writes it, and an operator may do both with an
editor. It has hashes only: whoever reads it can show no token. A plain SHA-256 will do, because tokens are random and long; for what people make up
it would not.

    [search-app]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_minute = 600
    tokens_per_minute = 1000000

In:  a path      Out: entries by name
"""

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nv_embed.errors import EmbedError, InvalidInput

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
HASH = re.compile(r"[0-9a-f]{64}")
HEADER = re.compile(r"""\s*\[\s*["']?([A-Za-z0-9_-]+)["']?\s*\]\s*(#.*)?""")

PREFIX = "nve_"
"""By which people, and programs that look for secrets that got out, know a token."""

SECRET_BYTES = 32
MODE = 0o600


class BadTokens(EmbedError):
    """The file of tokens cannot be used."""


@dataclass(frozen=True)
class Entry:
    """What is known of a token.

    Attributes:
        sha256: its hash, in lower-case hexadecimal digits.
        requests_per_minute, tokens_per_minute: what its holder may ask for; None: any number. The second are tokens of texts.
    """

    sha256: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


Entries = Mapping[str, Entry]


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def make_token() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def read(path: Path) -> Entries:
    """What a file says.

    Raises:
        BadTokens: it cannot be read, is malformed, or others may write it.
    """
    return parse(_content(path), path)


def parse(content: str, path: Path) -> Entries:
    """What a file's content says.

    Raises:
        BadTokens: it is malformed.
    """
    try:
        tables = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise BadTokens(f"{path} is not TOML: {error}", hint="see docs/security.md for an example") from None
    entries = {name: _entry(name, table, path) for name, table in tables.items()}
    if len({entry.sha256 for entry in entries.values()}) < len(entries):
        raise BadTokens(f"{path}: two tables have the same sha256", hint="give each holder a token of its own: nv-embed token add")
    return entries


def add(path: Path, name: str, *, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> str:
    """Make a token and write its hash into a file, which is made if it is not there. Returns the token, which nothing else knows.

    Raises:
        InvalidInput: the name is no name, or somebody has a token by it.
        BadTokens: the file cannot be read or written, or is malformed.
    """
    if not NAME.fullmatch(name):
        raise InvalidInput(f"'{name}' is not a name for a token", hint="give up to 64 letters, digits, _ and -")
    token = make_token()
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    lines = [f"[{name}]", f'sha256 = "{hash_token(token)}"', *(f"{key} = {value}" for key, value in limits.items() if value is not None)]
    with _alone(path):
        content = _content(path) if path.exists() else ""
        if name in parse(content, path):
            raise InvalidInput(
                f"{path} has a token of {name} already", hint="to replace it add one by another name, hand it out, and remove this one"
            )
        before = content.rstrip("\n")
        _write(path, (f"{before}\n\n" if before else "") + "\n".join(lines) + "\n")
    return token


def remove(path: Path, name: str) -> None:
    """Take a token out of a file. The other tables and their comments stay as they are.

    Raises:
        InvalidInput: nobody has a token by this name.
        BadTokens: the file cannot be read or written, or is malformed.
    """
    with _alone(path):
        content = _content(path)
        entries = dict(parse(content, path))
        if entries.pop(name, None) is None:
            raise InvalidInput(f"{path} has no token of {name}", hint=f"it has those of {', '.join(entries) or 'nobody'}")
        left = _without(content, name)
        if parse(left, path) != entries:
            raise BadTokens(f"{path} is not written as nv-embed token writes it", hint=f"remove the table of {name} with an editor")
        _write(path, left)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other program changes the file meanwhile. What is locked is its folder: the file itself is another one after each change."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadTokens(
            f"cannot open the folder of {path}: {error.strerror}", hint="name a file in a folder that you may read and write to"
        ) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read()
    except OSError as error:
        raise BadTokens(f"cannot read {path}: {error.strerror}", hint="name a file that nv-embed token add has written") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BadTokens(f"{path} may be written by others than its owner", hint=f"chmod 0600 {path}")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise BadTokens(f"{path} is not UTF-8", hint="see docs/security.md for an example") from None


def _entry(name: str, table: object, path: Path) -> Entry:
    where = f"{path}, table {name!r}"
    if not NAME.fullmatch(name):
        raise BadTokens(f"{where}: a name has up to 64 letters, digits, _ and -", hint="rename it")
    if not isinstance(table, dict) or "sha256" not in table:
        raise BadTokens(f"{where}: it has no sha256", hint="let nv-embed token add write it")
    unknown = sorted(set(table) - set(Entry.__dataclass_fields__))
    if unknown:
        # The name alone: somebody may have written the token itself.
        raise BadTokens(f"{where}: there is no setting {unknown[0]}", hint=f"there are {', '.join(Entry.__dataclass_fields__)}")
    sha256 = table.pop("sha256")
    if not isinstance(sha256, str) or not HASH.fullmatch(sha256.lower()):
        raise BadTokens(f"{where}: sha256 is not 64 hexadecimal digits", hint="it is the token's hash, not the token: printf %s TOKEN | sha256sum")
    for key, value in table.items():
        if type(value) is not int or value < 1:
            raise BadTokens(f"{where}: {key} is not a whole number above 0", hint="leave it out where there is no limit")
    return Entry(sha256.lower(), **table)


def _without(content: str, name: str) -> str:
    """The content without the lines of a table; comments that stand directly above the next table are that one's."""
    kept: list[str] = []
    cut: list[str] = []
    inside = False
    for line in content.splitlines(keepends=True):
        header = HEADER.fullmatch(line.rstrip("\n"))
        if header is not None:
            kept += _comments_at_the_end(cut)
            cut = []
            inside = header[1] == name
        (cut if inside else kept).append(line)
    return "".join(kept)


def _comments_at_the_end(lines: list[str]) -> list[str]:
    at = len(lines)
    while at and lines[at - 1].startswith("#"):
        at -= 1
    return lines[at:]


def _write(path: Path, content: str) -> None:
    """The file appears whole or not at all. A new one is its owner's alone; another one stays whose it was, or its sidecar could not read it."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(new, "w", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, MODE)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            before = path.stat()
            new.chmod(stat.S_IMODE(before.st_mode))
            if (before.st_uid, before.st_gid) != (new.stat().st_uid, new.stat().st_gid):
                os.chown(new, before.st_uid, before.st_gid)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise BadTokens(f"cannot write {path}: {error.strerror}", hint="be its owner, and name a file in a folder that you may write to") from None
