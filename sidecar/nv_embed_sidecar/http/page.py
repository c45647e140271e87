"""
The page for people: `/ui`.

Its shell, markup, style and script, is the same for everybody and holds nothing worth a token. What it shows it asks for, with the token that the
reader gave it: the sidecar's load, how far embeddings are, and the answers to a question at each width. Whatever waits for the database waits in
threads of the page's own, so that a slow one holds up no vector.

In:  a door, perhaps a database      Out: routes
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nv_embed
from nv_embed.errors import InvalidInput
from nv_embed_sidecar.http.app import Door, caller
from nv_embed_sidecar.http.bodies import Bodies
from nv_embed_sidecar.http.database import Asked, Database, NoDatabase, Row
from nv_embed_sidecar.http.failures import Unprocessable
from nv_embed_sidecar.http.room import Room
from nv_embed_sidecar.intake import Begun, Wanted
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.tokenising import InputType

SHELL = {
    "/ui": ("index.html", "text/html; charset=utf-8"),
    "/ui/page.css": ("page.css", "text/css; charset=utf-8"),
    "/ui/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/ui/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Files by path."""

FILES = Path(__file__).with_name("static")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

QUESTION_CHARACTERS = 2000
NAME_CHARACTERS = 260
BODY_BYTES = 64 * 1024
BODY_S = 10.0
ANSWER_S = 30.0
REQUESTS = 32
THREADS = 3

NONE = NoDatabase(
    "this sidecar shows no database",
    hint="start it with --ui-database-url postgresql://role@host/database, or with NV_EMBED_SIDECAR_UI_DATABASE_URL in its environment",
)


class WrongHost(InvalidInput):
    """A request came by a name that may be anybody's."""

    http_status = 421


class Search(BaseModel):
    """A question to an embedding's rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    relation: str = Field(max_length=NAME_CHARACTERS)
    target: str = Field(max_length=NAME_CHARACTERS)
    question: str = Field(min_length=1, max_length=QUESTION_CHARACTERS)
    rescore: bool = False


class Page:
    """What answers at `/ui`.

    Args:
        door: whose requests it counts among; the page's vectors come by it.
        database: what it shows besides.
    """

    def __init__(self, door: Door, database: Database | None) -> None:
        self._door = door
        self._database = database
        self._bodies = Bodies(BODY_BYTES, Room(REQUESTS * BODY_BYTES, "too many questions are being read"), BODY_S)
        self._places = Room(REQUESTS, "too many readers wait for the page's numbers")
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="page")
        self._shell = {path: _file(name, needs_token=door.tokens is not None) for path, (name, _) in SHELL.items()}

    def close(self) -> None:
        """When nothing is answered any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def add_to(self, app: FastAPI) -> None:
        for path, (_, media_type) in SHELL.items():
            app.get(path, include_in_schema=False)(self._shown(path, media_type))
        app.get("/ui/load", include_in_schema=False)(self.load)
        app.get("/ui/database", include_in_schema=False)(self.overview)
        app.post("/ui/search", include_in_schema=False)(self.search)

    async def load(self, request: Request) -> Response:
        """The sidecar's own numbers."""
        self._check_host(request)
        load = self._door.intake.metrics.load()
        models = [_described(model, load.rates.get(model.name)) for model in self._door.intake.models]
        return _json({"version": nv_embed.__version__, "at_s": time.monotonic(), **asdict(load), "models": models})

    async def overview(self, request: Request) -> Response:
        """The database's."""
        self._check_host(request)
        if self._database is None:
            return _json({"missing": f"{NONE.message}: {NONE.hint}"})
        with self._places.held(1):
            return _json(await self._in_pool(self._database.overview))

    async def search(self, request: Request) -> Response:
        """The same question at each width."""
        self._check_host(request)
        if self._database is None:
            raise NoDatabase(NONE.message, hint=NONE.hint)
        with self._places.held(1):
            async with self._bodies.body(request) as body:
                wanted = _read(body)
            model, revision, dim = await self._in_pool(self._database.model_of, wanted.relation, wanted.target)
            begun = time.perf_counter()
            embedding = await self._in_pool(self._begin, request, wanted.question, model, revision, dim)
            vectors = await self._door.vectors(request, embedding)
            embed_ms = (time.perf_counter() - begun) * 1000
            dims = _widths(embedding.model, dim)
            asked = Asked(wanted.relation, wanted.target, model, revision, dim, vectors[0].tolist(), dims, wanted.rescore)
            columns = await self._in_pool(self._database.search, asked)
        return _json({"model": embedding.model.name, "embed_ms": embed_ms, "columns": _compared(columns)})

    def _begin(self, request: Request, question: str, model: str, revision: str, dim: int) -> Begun:
        wanted = Wanted(model=model, revision=revision, dim=dim, input_type=InputType.QUERY, interactive=True)
        holder = caller(request)
        return self._door.intake.begin([question], wanted, client=holder.name, deadline=time.monotonic() + ANSWER_S, charge=holder.spend_tokens)

    def _shown(self, path: str, media_type: str) -> Callable[[], Response]:
        content = self._shell[path]
        return lambda: Response(content, media_type=media_type, headers=HEADERS)

    def _check_host(self, request: Request) -> None:
        """Without tokens, a page from elsewhere must not read ours by a name that it has resolve to this address."""
        if self._door.tokens is None and not _is_nobodys(request.headers.get("host", "")):
            raise WrongHost(
                "without tokens the page is served to localhost or an IP address, and not by another name",
                hint="open it by its address, or start the sidecar with --tokens",
            )

    async def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, work, *arguments)


def _file(name: str, *, needs_token: bool) -> bytes:
    """A file of the shell; the markup says whether a token is wanted, so that nothing is asked for in vain."""
    return (FILES / name).read_bytes().replace(b"@needs_token@", b"yes" if needs_token else b"no")


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=HEADERS)


def _read(body: bytes) -> Search:
    try:
        return Search.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = str(first["loc"][0])[:100] if first["loc"] else "the body"
        raise Unprocessable(f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}", param=name) from None


def _is_nobodys(said: str) -> bool:
    """Whether a header names a host whose address nobody can change."""
    try:
        host = urlsplit(f"//{said}").hostname
        return host == "localhost" or bool(ipaddress.ip_address(host or ""))
    except ValueError:
        return False


def _widths(model: Model, dim: int) -> list[int]:
    """Those that a vector of this width can be cut to, widest first."""
    return sorted({dim, *(width for width in (*model.trained_dims, *model.declared_dims) if width < dim)}, reverse=True)


def _described(model: Model, tokens_per_s: float | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "revision": model.revision,
        "trained_dims": model.trained_dims,
        "declared_dims": model.declared_dims,
        "max_tokens": model.tokenizer.max_tokens,
        "device": model.engine.device,
        "precision": model.engine.precision,
        "tokens_per_s": tokens_per_s,
    }


def _compared(columns: Sequence[Row]) -> list[Row]:
    """With each width how many of its hits are the widest's too."""
    widest = {hit["key"] for hit in columns[0].get("hits", ())} if columns else set()
    return [column if "error" in column else {**column, "same": len(widest & {hit["key"] for hit in column["hits"]})} for column in columns]
