"""
The routes.

A request is read, then checked, tokenised and queued in a thread of the pool, and waits for its vectors without one. A caller that hangs up is given
up. Everything that fails leaves as `failures.py` says; the texts of a request are never logged and never appear in an answer.

In:  an intake      Out: an ASGI application
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

import nv_embed
from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, UnknownModel
from nv_embed.limits import MAX_MESSAGE_BYTES
from nv_embed.tokens import Entry
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.http import answers, failures, schema
from nv_embed_sidecar.http.bodies import Bodies, until_gone
from nv_embed_sidecar.http.guard import HOLDER, OUTCOME, Guard
from nv_embed_sidecar.http.room import Held, Room
from nv_embed_sidecar.http.schema import SUFFIXES, EmbeddingsRequest
from nv_embed_sidecar.intake import Begun, Intake, Wanted
from nv_embed_sidecar.metrics import CONTENT_TYPE
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.tokenising import InputType, Truncate
from nv_embed_sidecar.tokens import Holder, Tokens

CLIENT_HEADER = "nv-embed-client"
"""In which a caller says who it is, where its address does not."""

CLIENT_CHARACTERS = 100

BYTES_A_COMPONENT = 4

GONE = 499
"""Nobody reads the status of an answer to a caller that hung up; logs and metrics do."""


@dataclass(frozen=True)
class Bounds:
    """What the door takes.

    Attributes:
        requests: being worked on at a time.
        body_bytes, bodies_bytes: of one body, and of all that are being worked on.
        vectors_bytes: of all answers that are being computed or sent.
        body_s: for a body to come in.
        answer_s: for the vectors to be there.
        threads: that read requests and write answers.
    """

    requests: int = 1024
    body_bytes: int = MAX_MESSAGE_BYTES
    bodies_bytes: int = 256 * 1024 * 1024
    vectors_bytes: int = 512 * 1024 * 1024
    body_s: float = 30.0
    answer_s: float = 300.0
    threads: int = 8


class Health(BaseModel):
    object: str = "health.response"
    message: str
    live: bool | None = None
    ready: bool | None = None


class Embedding(BaseModel):
    object: str = "embedding"
    index: int
    embedding: list[float] | list[int] | str = Field(description="Numbers, or base64 where encoding_format says so.")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: str = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Door:
    """What answers.

    Attributes:
        intake: by which requests come in.
        tokens: one of which each request carries, but for those after the sidecar's health; None: none do.

    Args:
        is_live: whether anything will ever be computed again.
        is_ready: whether requests are taken now.
    """

    def __init__(self, intake: Intake, tokens: Tokens | None, *, is_live: Callable[[], bool], is_ready: Callable[[], bool], bounds: Bounds) -> None:
        self.intake = intake
        self.tokens = tokens
        self._is_live = is_live
        self._is_ready = is_ready
        self._bounds = bounds
        self._bodies = Bodies(bounds.body_bytes, Room(bounds.bodies_bytes, "too many requests are being read"), bounds.body_s)
        self._places = Room(bounds.requests, "too many requests are under way")
        self._vectors_room = Room(bounds.vectors_bytes, "too many answers are being computed and sent")
        self._widest_bytes = max(model.native_dim for model in intake.models) * BYTES_A_COMPONENT
        self._started = int(time.time())
        self.pool = ThreadPoolExecutor(bounds.threads, thread_name_prefix="http")

    def close(self) -> None:
        """When nothing is answered any more."""
        self.pool.shutdown(wait=False)

    async def embeddings(self, request: Request) -> Response:
        """An answer, which keeps its place until it has been sent."""
        with ExitStack() as held:
            held.enter_context(self._places.held(1))
            async with self._bodies.body(request) as body:
                asked = await self._in_pool(schema.read, body)
                try:
                    answer = await self._answered(request, asked, held)
                except EmbedError as error:
                    return _refused(request, error, is_of_nim=asked.is_of_nim, inputs=len(asked.inputs))
            return Held(answer, held.pop_all().close)

    async def models(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._described(model) for model in self.intake.models]})

    async def model(self, name: str) -> Response:
        return JSONResponse(self._described(self.intake.models.find(name)))

    async def live(self) -> Response:
        return _health("live", self._is_live())

    async def ready(self) -> Response:
        return _health("ready", self._is_ready())

    async def metrics(self) -> Response:
        return Response(await self._in_pool(self.intake.metrics.text), media_type=CONTENT_TYPE)

    async def metadata(self) -> Response:
        models = [
            {"modelUrl": "", "shortName": f"{model.name}:{model.revision}", "device": model.engine.device, "precision": model.engine.precision}
            for model in self.intake.models
        ]
        return JSONResponse(
            {"version": nv_embed.__version__, "modelInfo": models, "assetInfo": [], "licenseInfo": {}, "profileInfo": {}, "repository_override": ""}
        )

    async def _answered(self, request: Request, asked: EmbeddingsRequest, held: ExitStack) -> Response:
        # Where there are more texts than a request may have, it is refused for that.
        held.enter_context(self._vectors_room.held(min(len(asked.inputs), self.intake.limits.texts) * self._widest_bytes))
        deadline = time.monotonic() + self._bounds.answer_s
        begun = await self._in_pool(self._begin, asked, caller(request), deadline)
        vectors = await self.vectors(request, begun)
        pieces = answers.body(
            vectors,
            model=begun.model.name,
            tokens=sum(begun.tokens),
            embedding_type=asked.embedding_type,
            encoding_format=asked.encoding_format,
        )
        headers = {"nv-embed-revision": begun.model.revision}
        if vectors.size <= answers.PIECE_COMPONENTS:
            return Response(await self._in_pool(b"".join, pieces), media_type="application/json", headers=headers)
        return StreamingResponse(self._from_pool(pieces), media_type="application/json", headers=headers)

    def _begin(self, asked: EmbeddingsRequest, caller: Holder, deadline: float) -> Begun:
        model, input_type = self._meant(asked)
        wanted = Wanted(
            model=model.name,
            dim=asked.dimensions or 0,
            input_type=input_type,
            truncate=Truncate[asked.truncate],
            interactive=input_type is InputType.QUERY,
        )
        return self.intake.begin(asked.inputs, wanted, client=caller.name, deadline=deadline, charge=caller.spend_tokens)

    def _meant(self, asked: EmbeddingsRequest) -> tuple[Model, InputType]:
        """The model, and the input type that the request or a suffix of the model's name says."""
        said = asked.input_type
        try:
            model = self.intake.models.find(asked.model)
        except UnknownModel:
            name, dash, kind = asked.model.rpartition("-")
            meant = SUFFIXES.get(dash + kind)
            if meant is None:
                raise
            model = self.intake.models.find(name)
            if said not in (None, meant):
                raise InvalidInput(f"the model's name says {meant}, and input_type {said}", hint="leave one of them out") from None
            said = meant
        return model, InputType.QUERY if said == "query" else InputType.PASSAGE

    async def vectors(self, request: Request, begun: Begun) -> Vectors:
        """The vectors, unless the caller hangs up before they are there."""
        assert begun.future is not None
        computed, gone = asyncio.wrap_future(begun.future), asyncio.ensure_future(until_gone(request))
        try:
            await asyncio.wait((computed, gone), timeout=self._bounds.answer_s, return_when=asyncio.FIRST_COMPLETED)
            if computed.done():
                vectors: Vectors = await self._in_pool(begun.cut, computed.result())
                return vectors
            if gone.done():
                raise ClientDisconnect
            raise DeadlineExceeded("the vectors were not there in time", hint="send fewer texts")
        finally:
            computed.cancel()
            gone.cancel()
            begun.end()

    async def _in_pool(self, work: Callable[..., Any], *arguments: Any) -> Any:
        # With its context, so that what it does is a part of the request's trace.
        return await asyncio.get_running_loop().run_in_executor(self.pool, copy_context().run, work, *arguments)

    async def _from_pool(self, pieces: Iterator[bytes]) -> Any:
        while (piece := await self._in_pool(next, pieces, None)) is not None:
            yield piece

    def _described(self, model: Model) -> dict[str, Any]:
        """OpenAI's model object, and what a client of ours wants to know."""
        return {
            "id": model.name,
            "object": "model",
            "created": self._started,
            "owned_by": "nv_embed",
            "root": model.name,
            "parent": None,
            "aliases": list(model.aliases),
            "revision": model.revision,
            "max_tokens": model.tokenizer.max_tokens,
            "dimensions": [*model.trained_dims, *model.declared_dims],
        }


def make(door: Door, add: Callable[[FastAPI], None] = lambda _: None, shown: Collection[str] = ()) -> ASGIApp:
    """The application.

    Args:
        add: adds further routes.
        shown: those of them that need no token.
    """
    app = FastAPI(
        title="nv_embed",
        version=nv_embed.__version__,
        description="Text embeddings, as NVIDIA's NIM and OpenAI serve them.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        # Spans are the guard's. What FastAPI would record by itself quotes what it chokes on, and that may be somebody's text.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False},
    )
    said = {"requestBody": {"required": True, "content": {"application/json": {"schema": EmbeddingsRequest.model_json_schema()}}}}
    refusals: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in REFUSALS.items()}
    app.post("/v1/embeddings", openapi_extra=said, response_model=Embeddings, responses=refusals, summary="Embed texts")(door.embeddings)
    app.get("/v1/models", summary="What is served")(door.models)
    app.get("/v1/models/{name:path}", responses={404: refusals[404]}, summary="One of the models")(door.model)
    app.get("/v1/health/live", response_model=Health, responses={503: {"model": Health}}, summary="Whether to start it again")(door.live)
    app.get("/v1/health/ready", response_model=Health, responses={503: {"model": Health}}, summary="Whether it takes requests")(door.ready)
    app.get("/v1/metadata", summary="Versions")(door.metadata)
    app.get("/v1/metrics", summary="For Prometheus", response_class=PlainTextResponse)(door.metrics)
    add(app)
    app.add_exception_handler(EmbedError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fail)
    calls = {route.path for route in app.routes if isinstance(route, Route)}
    return Guard(app, door.intake.metrics, door.intake.tracing, door.tokens, calls, shown)


REFUSALS = {
    401: "The token is missing, or nobody's.",
    400: "The request cannot be computed: a text is too long, or the model was not trained for that width.",
    404: "No such model is served.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    422: "The request is not of this form.",
    429: "Too much waits already; Retry-After says when to come back.",
    500: "The engine failed.",
    503: "Nothing is computed at the moment.",
    504: "The vectors were not there in time.",
}


def _health(name: str, is_so: bool) -> JSONResponse:
    return JSONResponse({"object": "health.response", "message": name if is_so else f"not {name}", name: is_so}, 200 if is_so else 503)


def caller(request: Request) -> Holder:
    """Who calls: the holder of a token, else somebody at an address who may ask for anything."""
    holder: Holder | None = request.scope.get(HOLDER)
    if holder is None:
        host = request.client.host if request.client else ""
        holder = Holder(f"{host} {request.headers.get(CLIENT_HEADER, '')[:CLIENT_CHARACTERS]}", Entry(sha256=""))
    return holder


def _refused(request: Request, error: EmbedError, *, is_of_nim: bool, inputs: int = 1) -> Response:
    request.scope[OUTCOME].error = type(error).__name__
    return failures.response(error, is_of_nim=is_of_nim, inputs=inputs)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, EmbedError)
    return _refused(request, error, is_of_nim=False)


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:100]}: {str(error.detail).lower()}"
    return failures.openai(message, error.status_code, headers=error.headers)


async def _gone(request: Request, error: Exception) -> Response:
    del request, error
    return Response(status_code=GONE)


async def _fail(request: Request, error: Exception) -> Response:
    """The answer; the error itself goes on to the guard, which logs it."""
    del request, error
    return failures.response(EngineFailure("the sidecar failed", hint="try again; the sidecar's log says what happened"), is_of_nim=False)
