"""
The client: texts to vectors over gRPC.

A list of texts is cut into pages by count and bytes; two pages for each sidecar are under way at a time, so that none waits for the network.
Every call carries a deadline. Whatever goes wrong comes out as one of the errors of `errors.py`.

How a call is begun and waited for is left to a `Caller`, because inside a Postgres backend both need care (`plpython.py`); elsewhere it just blocks.

In:  texts      Out: `Page`s of raw float32 rows, or arrays
"""

import os
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from nv_embed import channels, traceparent
from nv_embed.credentials import Pem, channel_credentials, token_metadata, why_unconnected
from nv_embed.errors import BY_GRPC_CODE, DeadlineExceeded, EmbedError, EngineFailure, InvalidInput, Unavailable
from nv_embed.limits import MAX_TEXT_BYTES
from nv_embed.proto import nv_embed_pb2 as pb
from nv_embed.proto.nv_embed_pb2_grpc import EmbedderStub

DEFAULT_TIMEOUT_S = 60.0

# Short texts make good batches only by the hundred: a quick engine loses some percent on pages of half as many.
PAGE_TEXTS = 512
PAGE_BYTES = 64 * 1024
PAGES_UNDER_WAY = 2
MOST_PAGES_UNDER_WAY = 16

INPUT_TYPES = {"passage": pb.INPUT_TYPE_PASSAGE, "query": pb.INPUT_TYPE_QUERY}
TRUNCATES = {"NONE": pb.TRUNCATE_NONE, "START": pb.TRUNCATE_START, "END": pb.TRUNCATE_END}

R = TypeVar("R")


class Caller(Protocol):
    """How calls are begun and waited for."""

    def begin(self, call: Callable[[], "grpc.Future[R]"]) -> "grpc.Future[R]": ...

    def wait(self, answer: "grpc.Future[R]") -> R: ...


class BlockingCaller:
    """Begin a call and block until its answer is there."""

    def begin(self, call: Callable[[], "grpc.Future[R]"]) -> "grpc.Future[R]":
        return call()

    def wait(self, answer: "grpc.Future[R]") -> R:
        return answer.result()


@dataclass(frozen=True)
class Page:
    """Vectors of some consecutive texts.

    Attributes:
        vectors: [count, dim] float32, little-endian, row after row.
        count: number of rows.
        dim: components of a row.
        model, revision: what made them.
    """

    vectors: bytes
    count: int
    dim: int
    model: str
    revision: str

    def rows(self) -> Iterator["array[float]"]:
        width = 4 * self.dim
        for start in range(0, len(self.vectors), width):
            yield array("f", self.vectors[start : start + width])


@dataclass(frozen=True)
class Piece:
    """One chunk of a text: characters `start_char` up to, not including, `end_char`, counted from 0."""

    start_char: int
    end_char: int
    tokens: int


class Client:
    """A connection to a sidecar.

    Args:
        endpoint: `host:port` or `unix:/path/to/socket`. A name may have several addresses, and IP addresses with their ports may be listed with
            commas between: calls are then dealt out among the sidecars that are well.
        token: what the sidecar lets in. It goes to this machine or by TLS only, unless `token_without_tls` says that the network is private.
        ca: who has signed the sidecar's certificate: PEM, the path of a PEM file, or `system` for the usual authorities. With it TLS is used.
        certificate, key: what is shown to a sidecar that wants to know its clients by TLS; PEM, or paths.
        tls: use TLS, with the usual authorities where no `ca` is given. A unix socket is never encrypted.
        timeout_s: the longest wait for the answer to one page of texts.
        caller: how calls are waited for; blocking unless given.
        label: how messages name the endpoint; the endpoint itself unless given.
        trace: what each call says of the trace that it is part of; OpenTelemetry's current span unless given.
    Raises:
        InvalidInput: the credentials cannot be used, or the token would go over the network unencrypted.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        ca: Pem | None = None,
        certificate: Pem | None = None,
        key: Pem | None = None,
        tls: bool = False,
        token_without_tls: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        caller: Caller | None = None,
        label: str | None = None,
        trace: Callable[[], traceparent.Metadata] = traceparent.of_current_span,
    ) -> None:
        self.endpoint = endpoint
        self.timeout_s = timeout_s
        self._caller: Caller = caller or BlockingCaller()
        self._trace = trace
        self._label = label or f"the sidecar at {endpoint}"
        credentials = channel_credentials(endpoint, ca, certificate, key, tls=tls)
        self._encrypted = credentials is not None
        authorization = token_metadata(endpoint, token, encrypted=self._encrypted, token_without_tls=token_without_tls)
        # A sidecar is fair to its clients, and on a unix socket it sees no difference between them.
        self._metadata = (("nv-embed-client", f"{socket.gethostname()}:{os.getpid()}"), *authorization)
        if credentials is None:
            self._channel = grpc.insecure_channel(channels.target(endpoint), options=channels.options(endpoint))
        else:
            self._channel = grpc.secure_channel(channels.target(endpoint), credentials, options=channels.options(endpoint))
        self._may_be_many = channels.may_be_many(endpoint)
        self._pages_under_way = min(PAGES_UNDER_WAY * channels.count(endpoint), MOST_PAGES_UNDER_WAY)
        self._stub = EmbedderStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def embed(
        self,
        texts: Iterable[str],
        *,
        dim: int | None = None,
        input_type: str = "passage",
        model: str | None = None,
        revision: str | None = None,
        truncate: str = "NONE",
        timeout_s: float | None = None,
    ) -> Any:
        """Embed texts, in their order.

        Args:
            dim: one of the model's dimensions; its native width unless given.
            input_type: `passage` for what is searched, `query` for what is asked, which goes before the passages that wait at the sidecar.
            model: a name that `list_models` shows; the sidecar's default unless given.
            revision: refuse to answer with any other revision of the model.
            truncate: `NONE` (a text over the model's limit is an error), `START` or `END`.
            timeout_s: the longest wait for one page; the client's unless given.
        Returns:
            [len(texts), dim] float32 of unit length: a NumPy array where NumPy is installed, else a list of lists.
        Raises:
            EmbedError: one of the classes of `errors.py`.
            TypeError: `texts` is a single string.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string: give a list of them")
        texts = list(texts)
        pages = list(self.embed_pages(texts, dim=dim, input_type=input_type, model=model, revision=revision, truncate=truncate, timeout_s=timeout_s))
        try:
            import numpy
        except ImportError:
            return [row.tolist() for page in pages for row in page.rows()]
        width = pages[0].dim if pages else dim or 0
        # A bytearray, because an array over bytes could not be written to.
        return numpy.frombuffer(bytearray().join(page.vectors for page in pages), dtype="<f4").reshape(len(texts), width)

    def embed_pages(
        self,
        texts: Sequence[str],
        *,
        dim: int | None = None,
        input_type: str = "passage",
        model: str | None = None,
        revision: str | None = None,
        truncate: str = "NONE",
        timeout_s: float | None = None,
    ) -> Iterator[Page]:
        """Embed texts page by page, in their order; two calls for each sidecar wait at a time. Arguments and errors as for `embed`."""
        check_dim(dim)
        input_type_value = _choice("input_type", input_type.lower(), INPUT_TYPES)
        # Somebody waits for the answer to a question.
        priority = pb.PRIORITY_INTERACTIVE if input_type_value == pb.INPUT_TYPE_QUERY else pb.PRIORITY_BULK
        truncate_value = _choice("truncate", truncate.upper(), TRUNCATES)
        under_way: deque[_Call] = deque()
        served: tuple[str, str, int] | None = None
        try:
            for start, page in _cut(texts):
                request = pb.EmbedRequest(
                    texts=page,
                    dim=dim or 0,
                    input_type=input_type_value,
                    model=model or "",
                    revision=revision or (served[1] if served else ""),
                    truncate=truncate_value,
                    priority=priority,
                )
                under_way.append(self._begin(self._stub.Embed, request, start, timeout_s))
                if len(under_way) == self._pages_under_way:
                    answered = self._page(under_way)
                    served = _same_model(served, answered)
                    yield answered
            while under_way:
                answered = self._page(under_way)
                served = _same_model(served, answered)
                yield answered
        finally:
            for call in under_way:
                call.answer.cancel()

    def count_tokens(self, texts: Sequence[str], *, model: str | None = None, input_type: str = "passage") -> list[int]:
        """How many tokens the model sees for each text, special tokens and prompt included."""
        input_type_value = _choice("input_type", input_type.lower(), INPUT_TYPES)
        counts: list[int] = []
        for start, page in _cut(texts):
            request = pb.TokenizeRequest(texts=page, input_type=input_type_value, model=model or "")
            counts.extend(self._answer(self._begin(self._stub.Tokenize, request, start)).tokens)
        return counts

    def chunk(self, text: str, max_tokens: int, *, overlap: int = 0, model: str | None = None) -> list[Piece]:
        """Cut a text into pieces of at most `max_tokens` tokens, each repeating about `overlap` tokens of the one before."""
        _check_bytes(0, text)
        if max_tokens < 1 or not 0 <= overlap < max_tokens:
            raise InvalidInput(
                f"max_tokens is {max_tokens} and overlap {overlap}", hint="max_tokens must be at least 1, and overlap at least 0 and below max_tokens"
            )
        request = pb.ChunkRequest(text=text, max_tokens=max_tokens, overlap=overlap, model=model or "")
        chunks = self._answer(self._begin(self._stub.Chunk, request)).chunks
        return [Piece(chunk.start_char, chunk.end_char, chunk.tokens) for chunk in chunks]

    def list_models(self) -> list[pb.Model]:
        """What the sidecar serves, its default first."""
        return list(self._answer(self._begin(self._stub.ListModels, pb.ListModelsRequest())).models)

    def health(self) -> str:
        """What the sidecar's health service says: `SERVING` or `NOT_SERVING`."""
        request = health_pb2.HealthCheckRequest()
        answer = self._answer(self._begin(HealthStub(self._channel).Check, request))
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def _begin(self, method: Any, request: Any, start: int = 0, timeout_s: float | None = None) -> "_Call":
        timeout = self.timeout_s if timeout_s is None else timeout_s
        metadata = (*self._metadata, *self._trace())
        until = time.monotonic() + timeout

        def begin() -> "grpc.Future[Any]":
            return self._caller.begin(lambda: method.future(request, timeout=max(until - time.monotonic(), 0), metadata=metadata))

        return _Call(request, start, timeout, begin, begin())

    def _answer(self, call: "_Call") -> Any:
        """The answer to a call, or the table's error."""
        try:
            return self._caller.wait(call.answer)
        except grpc.RpcError as error:
            if not (self._may_be_many and _is_cut_off(error) and call.is_new):
                raise self._translate(error, call) from None
            # gRPC repeats no call whose answer has begun, as that of a sidecar may have that is killed, and none that came to one as it stopped.
            call.is_new, call.answer = False, call.begin()
            return self._answer(call)
        except grpc.FutureCancelledError:
            raise Unavailable(f"the call to {self._label} was cancelled", hint="try again") from None

    def _page(self, under_way: "deque[_Call]") -> Page:
        call = under_way[0]
        answer = self._answer(call)
        under_way.popleft()
        count = len(call.request.texts)
        if answer.dim < 1 or len(answer.vectors) != 4 * count * answer.dim:
            raise EngineFailure(
                f"{self._label} answered {len(answer.vectors)} bytes for {count} texts at {answer.dim} dimensions",
                hint="nothing was used of this answer; check that the endpoint is an nv_embed sidecar of this version",
            )
        return Page(answer.vectors, count, answer.dim, answer.model, answer.revision)

    def _translate(self, error: Any, call: "_Call") -> EmbedError:
        """The table's error for a gRPC status. What gRPC itself says of addresses stays out of it: an ordinary SQL user must not learn them."""
        code = error.code().name
        trailing = dict(error.trailing_metadata() or ())
        hint = trailing.get("nv-embed-hint-bin", b"").decode(errors="replace")
        if code == "DEADLINE_EXCEEDED":
            return DeadlineExceeded(
                f"{self._label} did not answer within {call.timeout_s:g} s", hint=hint or "send fewer texts at a time, or allow more time"
            )
        if _is_cut_off(error):
            why, remedy = why_unconnected(error.details() or "", encrypted=self._encrypted)
            return Unavailable(f"no answer from {self._label}: {why}", hint=hint or remedy)
        if code == "UNIMPLEMENTED":
            return Unavailable(f"{self._label} does not speak nv_embed.v1", hint="point the endpoint at an nv_embed sidecar")
        if code == "RESOURCE_EXHAUSTED" and "nv-embed-retry-after-s" not in trailing:
            # gRPC's own refusal of an over-long message, not an overload: the same request would be refused for ever.
            return InvalidInput("the request is larger than the sidecar accepts", hint="send shorter texts, or fewer at a time")
        retry_after, position = trailing.get("nv-embed-retry-after-s"), trailing.get("nv-embed-text")
        return BY_GRPC_CODE.get(code, EngineFailure)(
            error.details() or code,
            hint=hint,
            retry_after_s=float(retry_after) if retry_after else None,
            position=call.start + int(position) if position else None,
        )


@dataclass
class _Call:
    """A call under way.

    Attributes:
        start: the position of its first text among all.
        begin: makes it again, for what is left of the time.
        is_new: whether it was made once only.
    """

    request: Any
    start: int
    timeout_s: float
    begin: Callable[[], "grpc.Future[Any]"]
    answer: "grpc.Future[Any]"
    is_new: bool = True


def _is_cut_off(error: Any) -> bool:
    """Whether gRPC itself says that nobody answers; what a sidecar says has a hint. A call that we cancel ourselves has no such error."""
    return error.code().name in {"UNAVAILABLE", "CANCELLED"} and "nv-embed-hint-bin" not in dict(error.trailing_metadata() or ())


def check_dim(dim: int | None) -> None:
    if dim is not None and not 1 <= dim <= 16000:
        raise InvalidInput(
            f"{dim} is not a number of dimensions", hint="leave dim out for the model's native width; nv_embed.models() lists the others"
        )


def _choice(name: str, value: str, choices: dict[str, R]) -> R:
    if value not in choices:
        raise InvalidInput(f"{name} '{value}' is unknown", hint=f"{name} is one of {', '.join(choices)}")
    return choices[value]


def _check_bytes(position: int, text: str) -> int:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidInput(f"this is no Unicode text: {error.reason}", hint="read it with the right encoding", position=position) from None
    if size > MAX_TEXT_BYTES:
        raise InvalidInput(
            f"{size:,} bytes exceed the limit of {MAX_TEXT_BYTES:,} bytes a text",
            hint="cut the text first, and embed its pieces",
            position=position,
        )
    return size


def _cut(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Pages of at most `PAGE_TEXTS` texts and `PAGE_BYTES` bytes, but of one text at least, each with the position of its first text.

    All texts are checked before the first page leaves.
    """
    sizes = [_check_bytes(position, text) for position, text in enumerate(texts)]
    start = page_bytes = 0
    for position, size in enumerate(sizes):
        if position > start and (position - start == PAGE_TEXTS or page_bytes + size > PAGE_BYTES):
            yield start, texts[start:position]
            start, page_bytes = position, 0
        page_bytes += size
    if start < len(texts):
        yield start, texts[start:]


def _same_model(served: tuple[str, str, int] | None, page: Page) -> tuple[str, str, int]:
    """One call's vectors come from one model, even when the sidecar is replaced between two pages."""
    now = (page.model, page.revision, page.dim)
    if served is not None and served != now:
        raise Unavailable(f"the sidecar changed its model from {served[0]} {served[1]} to {now[0]} {now[1]} during the call", hint="try again")
    return now
