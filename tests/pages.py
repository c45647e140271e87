"""
The sidecar's page with all that is behind it: a database with embedded tables, a sidecar with the real model, and Debian's Chromium to look with.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from installs import Install, make_role
from playwright.sync_api import Browser, BrowserContext, sync_playwright
from psycopg import sql
from servers import Sidecar, running_sidecar, shared_folder

from nv_embed import tokens

READER = "page"
"""The role that the page reads with: it may see what is counted, and select from two of the three tables."""

TEXTS = (
    "A dynamo turns the motion of a wheel into electric current.",
    "Dough rises because yeast makes gas while it rests in the warm.",
    "The violin has four strings, tuned in fifths, and is played with a bow.",
    "A sundial tells the hours by the shadow of a rod.",
    "Copper wire that moves near a magnet carries a current.",
    "An oven bakes bread at some 230 degrees, with steam in the first minutes.",
    "Steam engines pumped water from mines before they drew trains.",
    "The battery of Volta is a pile of zinc, copper and wet cloth.",
    "A cello sounds an octave below the viola.",
    "Windmills ground corn long before they made electricity.",
    "Pendulum clocks were the most exact ones for three centuries.",
    "Transformers raise the voltage, so that less is lost on long lines.",
    "Rye bread is baked with sourdough, since its gluten does not hold.",
    "The telegraph sent letters over a wire as long and short pulses.",
    "A turbine is a wheel that water or steam drives from all sides.",
    "Lightning is a current between a cloud and the ground.",
)


@dataclass(frozen=True)
class Stack:
    """A sidecar that shows a database.

    Attributes:
        address: of its page.
        owner: of the tables, in autocommit mode; its URL is dsn.
        token: one that the sidecar knows.
    """

    sidecar: Sidecar
    address: str
    owner: psycopg.Connection[tuple[object, ...]]
    dsn: str
    token: str


@contextmanager
def stack(install: Install, *model: str) -> Iterator[Stack]:
    """Table docs is embedded whole, library.secrets is not for the page's role, and table later waits for a worker."""
    name = f"page_{os.getpid()}"
    install.copy(name)
    make_role(install.cluster, READER)
    try:
        with (
            shared_folder() as folder,
            _serving(install, name, folder, *model) as running,
            psycopg.connect(install.dsn(name), autocommit=True) as owner,
        ):
            sidecar, token = running
            owner.execute("SELECT nv_embed.configure(%s, token => %s)", [sidecar.address, token])
            _make_tables(owner)
            yield Stack(sidecar, f"http://{sidecar.ready['http'][0]}/ui", owner, install.dsn(name), token)
    finally:
        with install.cluster.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def _serving(install: Install, name: str, folder: Path, *model: str) -> Iterator[tuple[Sidecar, str]]:
    token = tokens.add(folder / "tokens.toml", "reader")
    url = install.dsn(name, READER)
    over_http = ("--http", "127.0.0.1:0", "--ui", "--ui-database-url", url, "--tokens", str(folder / "tokens.toml"))
    with running_sidecar(folder, *model, *over_http) as sidecar:
        yield sidecar, token


def _make_tables(owner: psycopg.Connection[tuple[object, ...]]) -> None:
    owner.execute("CREATE SCHEMA library")
    owner.execute("GRANT nv_embed_worker TO page")
    owner.execute("GRANT USAGE ON SCHEMA library TO page")
    for table in ("docs", "later", "library.secrets"):
        name = sql.SQL(table)
        owner.execute(sql.SQL("CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)").format(name))
        owner.execute("SELECT nv_embed.auto_embed(%s, source => '{body}', mode => %s)", [table, "async" if table == "later" else "sync"])
        owner.cursor().executemany(sql.SQL("INSERT INTO {} (body) VALUES (%s)").format(name), [[text] for text in TEXTS])
    owner.execute("GRANT SELECT ON docs, later TO page")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's, which set-up installs for tests."""
    found = shutil.which("chromium")
    assert found is not None, "the page is tested in Debian's chromium: make setup TESTS=1 installs it, as `make test` does"
    with sync_playwright() as playwright:
        # Root may not use Chromium's sandbox; the page is our own.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Browser, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator[BrowserContext]:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce"
    )
    try:
        yield context
    finally:
        context.close()
