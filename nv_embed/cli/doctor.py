"""
`nv-embed doctor`: what is wrong, and how to mend it.

Each check is a function that looks at one thing and says how it is. They stand in the order in which things depend on each other: the first that
fails is usually the one to mend.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from nv_embed import __version__, home
from nv_embed.cli.status import JsonOption

if TYPE_CHECKING:
    from nv_embed.cli.private import Look

OLDEST_PGVECTOR = (0, 8, 6)
DISK_FAIL_BYTES = 200 * 1024**2
DISK_WARN_BYTES = 2 * 1024**3
SETUP = "make setup"
UP = "nv-embed up"

LIBRARY_PACKAGES = ("grpc", "grpc_health", "google.protobuf", "orjson", "psycopg", "pgvector", "sqlalchemy", "alembic", "rich")
SIDECAR_PACKAGES = ("nv_embed_sidecar", "torch", "transformers", "tokenizers", "safetensors", "numpy", "grpc_reflection")


@dataclass(frozen=True)
class Finding:
    """How one thing is.

    Attributes:
        state: `ok`, `warn` or `fail`.
        detail: what was found.
        remedy: what to do about it; empty where nothing need be done.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""


def doctor(as_json: JsonOption = False) -> None:
    """Say what is wrong, and how to mend it. Exits with 1 when something failed."""
    found = list(findings())
    if as_json:
        import orjson

        typer.echo(orjson.dumps([asdict(finding) for finding in found], option=orjson.OPT_INDENT_2).decode())
    else:
        _print_table(found)
    if any(finding.state == "fail" for finding in found):
        raise typer.Exit(1)


def findings() -> Iterator[Finding]:
    yield from installed_findings()
    if importlib.util.find_spec("psycopg") is None or importlib.util.find_spec("grpc") is None:
        return
    from nv_embed.cli.private import look, servers

    yield from running_findings(look(servers()))


def installed_findings() -> Iterator[Finding]:
    """What set-up left behind."""
    yield check_packages("library", LIBRARY_PACKAGES)
    yield check_packages("sidecar", SIDECAR_PACKAGES)
    yield check_home()
    yield check_disk()
    postgres = check_postgres_programs()
    yield postgres
    if postgres.state == "fail":
        return
    yield check_plpython()
    yield check_pgvector()
    yield check_extension_files()
    yield check_bundle()


def running_findings(found: "Look") -> Iterator[Finding]:
    """The servers, and what they say of each other."""
    yield check_server(found)
    if found.versions:
        yield check_database(found)
    yield check_sidecar(found)
    if found.healthy:
        yield check_model(found)
    if "nv_embed" in found.versions:
        yield check_endpoint(found)


def check_packages(owner: str, names: tuple[str, ...]) -> Finding:
    missing = [name for name in names if not _is_installed(name)]
    name = f"Python packages of the {owner}"
    if missing:
        return Finding(name, "fail", f"missing: {', '.join(missing)}", SETUP)
    return Finding(name, "ok", f"{len(names)} found")


def check_home() -> Finding:
    name, where, user = "folder of the servers", home.home(), home.postgres_user()
    if user is not None and not _user_exists(user):
        return Finding(name, "fail", f"the system has no user {user}", SETUP)
    if not where.is_dir():
        return Finding(name, "warn", f"{where} is not made yet", UP)
    if user is not None and not home.can_enter(user, where):
        return Finding(name, "fail", f"user {user} cannot enter {where}", "open the folders above it, or choose another one with NV_EMBED_HOME")
    if user is None and not os.access(where, os.W_OK):
        return Finding(name, "fail", f"{where} is not yours to write to", f"chown -R {pwd.getpwuid(os.geteuid()).pw_name} {where}")
    owner = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    for folder in (where / "run", where / "data"):
        if folder.is_dir() and folder.stat().st_uid != owner:
            return Finding(name, "fail", f"{folder} belongs to user {folder.stat().st_uid}, not {owner}", f"chown -R {owner} {folder}")
        if folder.is_dir() and folder.stat().st_mode & 0o027:
            return Finding(name, "fail", f"{folder} is open to others", f"chmod 0700 {folder}")
    return Finding(name, "ok", str(where) + (f" ({home.why()})" if home.why() else ""))


def check_disk() -> Finding:
    place = home.home()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    state = "fail" if free < DISK_FAIL_BYTES else "warn" if free < DISK_WARN_BYTES else "ok"
    return Finding("disk space", state, f"{free / 1024**3:.1f} GiB free at {place}", "" if state == "ok" else f"make room on the disk of {place}")


def check_postgres_programs() -> Finding:
    try:
        said = subprocess.run([home.pg_bin("postgres"), "--version"], capture_output=True, text=True, check=False, timeout=30)
    except (home.NotSetUp, OSError, subprocess.TimeoutExpired) as error:
        return Finding("PostgreSQL", "fail", str(error).removesuffix(": run `make setup`"), SETUP)
    if said.returncode != 0:
        return Finding("PostgreSQL", "fail", f"its server does not run: {said.stderr.strip()}", SETUP)
    return Finding("PostgreSQL", "ok", f"{said.stdout.removeprefix('postgres (PostgreSQL) ').strip()} in {home.pgroot()}")


def check_plpython() -> Finding:
    library = _library_dir() / "plpython3.so"
    if not library.exists() or _available_version("plpython3u") is None:
        return Finding("PL/Python", "fail", f"not in {home.pgroot()}", SETUP)
    version = _server_python()
    if version is None:
        return Finding("PL/Python", "fail", f"{library} finds no Python to run", SETUP)
    return Finding("PL/Python", "ok", f"runs Python {version}")


def check_pgvector() -> Finding:
    version = _available_version("vector")
    wanted = ".".join(map(str, OLDEST_PGVECTOR))
    if version is None:
        return Finding("pgvector", "fail", f"not in {home.pgroot()}", SETUP)
    if tuple(int(part) for part in re.findall(r"\d+", version)) < OLDEST_PGVECTOR:
        return Finding("pgvector", "fail", f"{version} is older than {wanted}, the first without known faults of its indexes", SETUP)
    return Finding("pgvector", "ok", version)


def check_extension_files() -> Finding:
    version = _available_version("nv_embed")
    if version is None:
        return Finding("extension files", "fail", f"nv_embed is not in {home.pgroot()}", SETUP)
    if version != __version__:
        return Finding("extension files", "fail", f"nv_embed {version} is installed, and this checkout is {__version__}", SETUP)
    return Finding("extension files", "ok", f"nv_embed {version}")


def check_bundle() -> Finding:
    """What PL/Python imports, imported by the same Python as the same user, with nothing of the caller's environment."""
    name, bundle, version = "Python bundle of the server", _library_dir() / "nv_embed", _server_python()
    if not bundle.is_dir():
        return Finding(name, "fail", f"{bundle} is missing", SETUP)
    python = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin:/bin")
    if python is None:
        return Finding(name, "warn", f"there is no program python{version} to try it with", "see what `SELECT * FROM nv_embed.health()` says")
    tried = _as_postgres([python, "-I", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import nv_embed.plpython", str(bundle)])
    if tried.returncode != 0:
        return Finding(name, "fail", (tried.stderr.strip().splitlines() or ["cannot be imported"])[-1], f"rm -r {bundle} && {SETUP}")
    return Finding(name, "ok", f"imports with Python {version}")


def check_server(found: "Look") -> Finding:
    name, cluster = "Postgres server", found.servers.cluster
    if found.postmaster is None:
        return Finding(name, "fail", "does not run", UP)
    if not found.versions:
        return Finding(name, "fail", f"runs on port {found.postmaster.port}, but database nv_embed does not answer", f"{UP}, or see {cluster.log}")
    installed = _major(found.versions["postgres"])
    if installed != _installed_major():
        return Finding(name, "warn", f"runs version {installed}, which is not the one installed now", f"nv-embed down && {UP}")
    return Finding(name, "ok", f"runs on port {found.postmaster.port}, process {found.postmaster.pid}")


def check_database(found: "Look") -> Finding:
    name, has, pgvector = "extension in the database", found.versions.get("nv_embed"), found.versions.get("vector")
    if has is None:
        return Finding(name, "fail", "nv_embed is not installed", UP)
    if has != _available_version("nv_embed"):
        return Finding(name, "fail", f"nv_embed is {has}, and the server has {_available_version('nv_embed')}", f"{UP}, which updates it")
    if pgvector != _available_version("vector"):
        return Finding(name, "warn", f"vector is {pgvector}, and the server has {_available_version('vector')}", "ALTER EXTENSION vector UPDATE")
    return Finding(name, "ok", f"nv_embed {has}, vector {pgvector}")


def check_sidecar(found: "Look") -> Finding:
    if found.serving is None:
        return Finding("sidecar", "fail", "does not run", UP)
    if not found.healthy:
        return Finding("sidecar", "fail", f"process {found.serving.pid} is not well: {found.health}", f"{UP}, which replaces it")
    return Finding("sidecar", "ok", f"serves on {', '.join(found.serving.addresses)}, process {found.serving.pid}")


def check_model(found: "Look") -> Finding:
    from nv_embed.client import Client
    from nv_embed.credentials import from_environment
    from nv_embed.errors import EmbedError

    assert found.serving is not None
    try:
        with Client(found.serving.own_address, timeout_s=30, **from_environment()) as client:
            model = client.list_models()[0]
            client.embed(["ready?"], model=model.name)
    except EmbedError as error:
        return Finding("model", "fail", str(error), f"nv-embed down && {UP}")
    except IndexError:
        return Finding("model", "fail", "the sidecar serves no model", f"nv-embed down && {UP}")
    return Finding("model", "ok", f"{model.name}, {model.native_dim} dimensions, {model.max_tokens} tokens, on {model.device}")


def check_endpoint(found: "Look") -> Finding:
    """That the server's own way to the sidecar is right, which is another one than ours."""
    import psycopg

    name = "way from Postgres to the sidecar"
    try:
        with found.servers.cluster.connect("nv_embed") as connection:
            asked = connection.execute("SELECT endpoint, serving, message, answer_ms FROM nv_embed.settings, nv_embed.health()").fetchone()
    except psycopg.Error as error:
        return Finding(name, "fail", str(error).splitlines()[0], f"{UP}; if that does not help, {SETUP}")
    endpoint, serving, message, answer_ms = asked or (None, False, "", None)
    if endpoint is None:
        return Finding(name, "fail", "no endpoint is configured", UP)
    ours = found.serving.addresses if found.serving else ()
    if not serving:
        return Finding(name, "fail", f"{endpoint}: {message}", UP)
    if endpoint not in ours:
        return Finding(name, "warn", f"the database asks {endpoint}, which is not the private sidecar", f"{UP}, unless that is meant")
    return Finding(name, "ok", f"{endpoint} answers within {answer_ms:.0f} ms")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _user_exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _installed_major() -> str | None:
    """The major version of PostgreSQL that set-up installed."""
    try:
        return home.pg_bin("postgres").parent.parent.name
    except home.NotSetUp:
        return None


def _library_dir() -> Path:
    return home.pg_bin("postgres").parent.parent / "lib"


def _available_version(extension: str) -> str | None:
    """The version that CREATE EXTENSION would install."""
    control = home.pgroot() / "usr/share/postgresql" / (_installed_major() or "") / "extension" / f"{extension}.control"
    try:
        found = re.search(r"^\s*default_version\s*=\s*'([^']*)'", control.read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _server_python() -> str | None:
    """The version of the Python that PL/Python is linked to."""
    linked = subprocess.run(["ldd", _library_dir() / "plpython3.so"], capture_output=True, text=True, check=False)
    found = re.search(r"libpython(3\.\d+)\.so\S* => /", linked.stdout)
    return found[1] if found else None


def _as_postgres(command: list[str]) -> "subprocess.CompletedProcess[str]":
    user = home.postgres_user()
    switch: dict[str, Any] = {}
    if user is not None:
        entry = pwd.getpwnam(user)
        switch = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}
    return subprocess.run(command, **switch, cwd="/", env={"LANG": "C.UTF-8"}, capture_output=True, text=True, check=False)


def _major(version: str) -> str:
    return version.split(".")[0].split()[0]


def _print_table(found: list[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    from nv_embed.cli.screen import console

    colours: dict[str, str] = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False, header_style="bold")
    for finding in found:
        table.add_row(Text(finding.state, style=colours[finding.state]), finding.name, Text(finding.detail), Text(finding.remedy))
    console.print(table)
    failed, warned = (sum(finding.state == state for finding in found) for state in ("fail", "warn"))
    typer.echo(f"\n{len(found)} checks, {failed} failed, {warned} with a warning." if failed or warned else f"\n{len(found)} checks, all well.")
