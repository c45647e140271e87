"""
nv_embed.v1 over gRPC.

A call is begun in its own thread (`intake.py`) and answered when its vectors are there. A stream is read ahead, so that the scheduler holds its next
requests while its earlier ones are computed. Every failure leaves as a status of the table in `nv_embed/errors.py`; the texts of a call are never
logged and never appear in an answer.

In:  protobuf requests      Out: protobuf answers, or a status with trailing metadata
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import closing, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import grpc

from nv_embed.errors import DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, Overloaded, Unavailable
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderServicer
from nv_embed.tokens import Entry
from nv_embed_sidecar import chunking, spans
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.intake import Begun, Intake, Wanted
from nv_embed_sidecar.metrics import Outcome
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.places import Full, Places
from nv_embed_sidecar.scheduler import Scheduler
from nv_embed_sidecar.streams import ReadAhead
from nv_embed_sidecar.tokenising import InputType, Truncate
from nv_embed_sidecar.tokens import Holder, Tokens

log = logging.getLogger(__name__)

T = TypeVar("T")

INPUT_TYPES: dict[int, InputType] = {0: InputType.PASSAGE, pb.INPUT_TYPE_PASSAGE: InputType.PASSAGE, pb.INPUT_TYPE_QUERY: InputType.QUERY}
TRUNCATES: dict[int, Truncate] = {0: Truncate.NONE, pb.TRUNCATE_NONE: Truncate.NONE, pb.TRUNCATE_START: Truncate.START, pb.TRUNCATE_END: Truncate.END}
INTERACTIVE: dict[int, bool] = {0: False, pb.PRIORITY_BULK: False, pb.PRIORITY_INTERACTIVE: True}

STREAM_PAUSE_S = 1.0
STREAM_REQUESTS = 4

# Metadata in which a caller says who it is, where its connection does not.
CLIENT_KEY = "nv-embed-client"
CLIENT_CHARACTERS = 100

AUTHORIZATION_KEY = "authorization"


class Service(EmbedderServicer):
    """What answers the calls.

    Args:
        max_calls: calls under way, queries and others each; each holds a thread, and health must always find one.
        max_streams: open `EmbedStream` calls; each holds a thread, and has one that reads ahead, for as long as it is open.
        tokens: whose calls are answered; everybody's where there are none.
    """

    def __init__(self, intake: Intake, scheduler: Scheduler, max_calls: int, max_streams: int, tokens: Tokens | None = None) -> None:
        self._intake = intake
        self._scheduler = scheduler
        self._tokens = tokens
        self._places = {interactive: Places(max_calls) for interactive in (False, True)}
        self._streams = Places(max_streams)

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedResponse:
        with self._answering(context, "Embed") as holder:
            holder.spend_request()
            with self._place(holder, interactive=INTERACTIVE.get(request.priority, False)):
                return self._begin(request, _Caller(context, holder)).wait()

    def EmbedStream(self, request_iterator: Iterator[pb.EmbedRequest], context: grpc.ServicerContext) -> Iterator[pb.EmbedResponse]:
        with self._answering(context, "EmbedStream") as holder:
            caller = _Caller(context, holder)
            # Requests are read in a thread of their own, which knows nothing of the call's span by itself.
            here = copy_context()
            try:
                with self._streams.taken(holder.name), closing(caller):
                    yield from ReadAhead(
                        self._each_counted(request_iterator, context), lambda request: here.run(self._begin, request, caller), STREAM_REQUESTS
                    ).answers()
            except Full as full:
                raise Overloaded(f"too many streams{full.whose} are open", hint="close some, or use Embed", retry_after_s=STREAM_PAUSE_S) from None

    def Tokenize(self, request: pb.TokenizeRequest, context: grpc.ServicerContext) -> pb.TokenizeResponse:
        with self._answering(context, "Tokenize") as holder:
            holder.spend_request()
            with self._place(holder, interactive=False):
                model = self._intake.models.find(request.model)
                self._intake.check(request.texts)
                input_type = _choice("input_type", request.input_type, INPUT_TYPES)
                self._intake.tracing.tell(model=model.name, texts=len(request.texts), input_type=input_type.value)
                return pb.TokenizeResponse(tokens=model.tokenizer.count(request.texts, input_type), model=model.name, revision=model.revision)

    def Chunk(self, request: pb.ChunkRequest, context: grpc.ServicerContext) -> pb.ChunkResponse:
        with self._answering(context, "Chunk") as holder:
            holder.spend_request()
            with self._place(holder, interactive=False):
                model = self._intake.models.find(request.model)
                self._intake.tracing.tell(model=model.name, texts=1)
                self._intake.check([request.text])
                answer = pb.ChunkResponse(model=model.name, revision=model.revision)
                for piece in chunking.chunk(model.tokenizer, request.text, request.max_tokens, request.overlap):
                    if not context.is_active():
                        raise DeadlineExceeded("the caller gave up or its deadline passed", hint="allow more time, or send less text")
                    answer.chunks.add(start_char=piece.start, end_char=piece.end, tokens=piece.tokens)
                return answer

    def ListModels(self, request: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        del request
        with self._answering(context, "ListModels") as holder:
            holder.spend_request()
            return pb.ListModelsResponse(models=[_described(model) for model in self._intake.models])

    def _holder(self, context: grpc.ServicerContext) -> Holder:
        """Who calls; without tokens somebody who may ask for anything."""
        if self._tokens is None:
            return Holder(_client(context), Entry(sha256=""))
        return self._tokens.holder(authorization(context.invocation_metadata()))

    def _each_counted(self, requests: Iterator[pb.EmbedRequest], context: grpc.ServicerContext) -> Iterator[pb.EmbedRequest]:
        """The requests of a stream, each as if it had come alone: a stream may be open for longer than its token holds."""
        for request in requests:
            self._holder(context).spend_request()
            yield request

    @contextmanager
    def _answering(self, context: grpc.ServicerContext, call: str) -> Iterator[Holder]:
        """Who calls; whatever goes wrong inside leaves as a status of the table, and is counted."""
        intake = self._intake
        with (
            intake.metrics.request("grpc", call) as outcome,
            spans.rpc(intake.tracing, call, context.invocation_metadata(), outcome),
            _statuses(context, outcome),
        ):
            yield self._holder(context)

    @contextmanager
    def _place(self, holder: Holder, *, interactive: bool) -> Iterator[None]:
        """One of the calls that may be under way."""
        try:
            with self._places[interactive].taken(holder.name):
                yield
        except Full as full:
            wait_s = self._scheduler.wait_s(interactive=interactive)
            said = f"too many calls{full.whose} are under way"
            raise Overloaded(said, hint="ask again later, or with more texts in fewer calls", retry_after_s=wait_s) from None

    def _begin(self, request: pb.EmbedRequest, caller: "_Caller") -> "_Answer":
        """Check, tokenise and queue a request."""
        wanted = Wanted(
            model=request.model,
            revision=request.revision,
            dim=request.dim,
            input_type=_choice("input_type", request.input_type, INPUT_TYPES),
            truncate=_choice("truncate", request.truncate, TRUNCATES),
            interactive=_choice("priority", request.priority, INTERACTIVE),
        )
        begun = self._intake.begin(
            request.texts, wanted, client=caller.holder.name, deadline=time.monotonic() + caller.time_left(), charge=caller.holder.spend_tokens
        )
        if begun.future is not None:
            caller.waits_for(begun.future)
        return _Answer(begun)


@dataclass
class _Answer:
    """An answer whose vectors, if it has any, are still being computed."""

    begun: Begun

    def wait(self) -> pb.EmbedResponse:
        begun = self.begun
        answer = pb.EmbedResponse(dim=begun.dim, model=begun.model.name, revision=begun.model.revision, tokens=begun.tokens)
        answer.vectors = begun.wait().astype("<f4", copy=False).tobytes()
        return answer


class _Caller:
    """Who calls; gives up what the call waits for as soon as its caller cancels, hangs up or runs out of time.

    One callback serves a whole stream: gRPC keeps every callback, and what it holds, until the stream ends.

    Attributes:
        holder: whom the scheduler is fair to, and who is charged.
    """

    def __init__(self, context: grpc.ServicerContext, holder: Holder) -> None:
        self.holder = holder
        self._context = context
        self._futures: set[Future[Vectors]] = set()
        self._gone = not context.add_callback(self.give_up)

    def time_left(self) -> float:
        left = self._context.time_remaining()
        return math.inf if left is None else left

    def waits_for(self, future: "Future[Vectors]") -> None:
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if self._gone:
            future.cancel()

    def close(self) -> None:
        """Give up what a stream that has ended still waits for."""
        self.give_up()

    def give_up(self) -> None:
        self._gone = True
        for future in list(self._futures):
            future.cancel()


def authorization(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The header of that name, where a call has one."""
    return next((str(value) for key, value in metadata if key == AUTHORIZATION_KEY), None)


def _client(context: grpc.ServicerContext) -> str:
    """Whom a call is from: the name that TLS has proved, else the connection with what the caller calls itself.

    A TCP connection has its own port. All that come through a unix socket look alike there, and all behind a proxy: only their own word tells them
    apart. Whoever changes it with every call gains no more than by new connections.
    """
    if names := context.peer_identities():
        return b" ".join(names).decode(errors="replace")
    said = next((str(value) for key, value in context.invocation_metadata() if key == CLIENT_KEY), "")
    return f"{context.peer()} {said[:CLIENT_CHARACTERS]}"


@contextmanager
def _statuses(context: grpc.ServicerContext, outcome: Outcome) -> Iterator[None]:
    try:
        yield
        outcome.code = "OK"
    except EmbedError as error:
        outcome.error = type(error).__name__
        _fail(context, outcome, error)
    except CancelledError:
        _fail(context, outcome, Unavailable("the caller gave up"))
    except Exception as error:
        if not context.is_active():
            log.debug("a call ended while it was answered", exc_info=True)
        else:
            outcome.error = type(error).__name__
            log.error("a call failed unexpectedly: %s", outcome.error, exc_info=True)
        _fail(context, outcome, EngineFailure("the sidecar failed", hint="try again; the sidecar's log says what happened"))


def _fail(context: grpc.ServicerContext, outcome: Outcome, error: EmbedError) -> NoReturn:
    if context.is_active():
        outcome.code = error.grpc_code
    abort(context, error)


def abort(context: grpc.ServicerContext, error: EmbedError) -> NoReturn:
    trailing: list[tuple[str, str | bytes]] = []
    if error.hint:
        trailing.append(("nv-embed-hint-bin", error.hint.encode()))
    if error.retry_after_s is not None:
        trailing.append(("nv-embed-retry-after-s", f"{error.retry_after_s:.3f}"))
    if error.position is not None:
        trailing.append(("nv-embed-text", str(error.position)))
    context.set_trailing_metadata(tuple(trailing))
    context.abort(grpc.StatusCode[error.grpc_code], error.message)
    raise AssertionError("abort returns nothing")


def _choice(name: str, value: int, choices: dict[int, T]) -> T:
    if value not in choices:
        raise InvalidInput(f"{name} {value} is unknown", hint=f"{name} is one of {', '.join(str(choice) for choice in choices)}")
    return choices[value]


def _described(model: Model) -> pb.Model:
    return pb.Model(
        name=model.name,
        revision=model.revision,
        native_dim=model.native_dim,
        trained_dims=model.trained_dims,
        declared_dims=model.declared_dims,
        max_tokens=model.tokenizer.max_tokens,
        pooling=model.pooling,
        query_prompt=model.prompt(InputType.QUERY),
        passage_prompt=model.prompt(InputType.PASSAGE),
        device=model.engine.device,
        precision=model.engine.precision,
    )
