"""
Inside a Postgres backend.

A PL/Python function is three lines: start the session once, call one method of it, return what it says. The rest is here, as ordinary Python that is
given `plpy`. Two things are special in a backend, and both sit in `BackendCaller`:

- gRPC starts threads. Every signal is blocked while a channel or a call is begun, so its threads inherit a full mask and Postgres's signals reach
  Postgres's own thread only.
- A blocking call cannot be cancelled. We wait in short steps and run a trivial query between them, which lets Postgres act on Ctrl-C, on
  `statement_timeout` and on a shutdown; the call is cancelled on the way out.

In:  SQL values      Out: vectors in pgvector's text form, written by orjson
"""

import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import grpc
import orjson

from nv_embed import traceparent
from nv_embed.client import Client
from nv_embed.errors import EmbedError, InvalidInput, Unavailable

M = TypeVar("M", bound=Callable[..., Any])
R = TypeVar("R")

INTERRUPT_CHECK_S = 0.05

QUERY_CANCELED = "57014"

# Columns of nv_embed.settings, as `Client` names them. A database that is not updated yet has the first two.
SETTINGS = ("endpoint", "timeout_s", "token", "ca", "certificate", "key", "token_without_tls")

# What trace the statement is part of is read with the settings, without a query of its own, and the statement's end once a statement: a long one may
# be megabytes, and call for each of its rows.
READ_SETTINGS = f"""
SELECT
    settings.*,
    current_setting('{traceparent.SETTING}', true) AS traceparent,
    began,
    CASE WHEN began IS DISTINCT FROM $1 THEN right(current_query(), {traceparent.COMMENT_CHARACTERS}) END AS statement_end
FROM nv_embed.settings, date_part('epoch', statement_timestamp()) AS began
"""  # noqa: S608 - of our own names

QUERY_CACHE_ENTRIES = 64
# Long enough for one page of an application, short enough that nobody waits for a new model to be asked.
QUERY_CACHE_S = 10.0


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Threads that start in here never take a signal meant for Postgres."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class BackendCaller:
    """Begins calls with signals blocked, and waits so that Postgres can interrupt."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._check_interrupts = plpy.prepare("SELECT 1")

    def begin(self, call: "Callable[[], grpc.Future[R]]") -> "grpc.Future[R]":
        with signals_blocked():
            return call()

    def wait(self, answer: "grpc.Future[R]") -> R:
        try:
            while True:
                try:
                    return answer.result(timeout=INTERRUPT_CHECK_S)
                except grpc.FutureTimeoutError:
                    self._plpy.execute(self._check_interrupts)
        finally:
            if not answer.done():
                with signals_blocked():
                    answer.cancel()


def _check_flat(texts: Sequence[Any]) -> None:
    if any(isinstance(text, list) for text in texts):
        raise InvalidInput("the array has more than one dimension", hint="give a one-dimensional array of texts")


def reported_error(plpy: Any) -> type[Exception]:
    """The class that Postgres reports. PL/Python prints a class by its name before the message: this one reads `nv_embed: …`."""
    return type("nv_embed", (plpy.Error,), {"__module__": "builtins"})


def reports(method: M) -> M:
    """Let an error of the table, or a cancelled wait, reach Postgres with its SQLSTATE and hint, and without the frames it came through."""

    @wraps(method)
    def reporting(session: "Session", *arguments: Any) -> Any:
        try:
            return method(session, *arguments)
        except EmbedError as error:
            found = session.postgres_error(error.message, error.sqlstate, error.hint)
        except session.cancelled as error:
            found = session.postgres_error(str(error), QUERY_CANCELED)
        raise found

    return cast(M, reporting)


class Session:
    """What one database session keeps: the connection to the sidecar, and the last few query vectors."""

    def __init__(self, plpy: Any) -> None:
        self._plpy = plpy
        self._error = reported_error(plpy)
        self._caller = BackendCaller(plpy)
        self._read_settings = plpy.prepare(READ_SETTINGS, ["float8"])
        self._statement: tuple[float | None, str | None] = (None, None)
        self._trace: traceparent.Metadata = ()
        self._settings: dict[str, Any] | None = None
        self._client: Client | None = None
        self._queries: OrderedDict[tuple[str, int | None, str | None, str | None], tuple[float, str]] = OrderedDict()

    @reports
    def embed(
        self, text: str | None, dim: int | None, input_type: str | None, model: str | None, truncate: str | None, revision: str | None = None
    ) -> str | None:
        """One text's vector in text form; NULL for NULL."""
        if text is None:
            return None
        return self._vectors([text], dim, input_type, model, truncate, revision)[0]

    @reports
    def embed_array(
        self,
        texts: Sequence[Any] | None,
        dim: int | None,
        input_type: str | None,
        model: str | None,
        truncate: str | None,
        revision: str | None = None,
    ) -> list[str | None] | None:
        """The vectors of an array of texts in text form, in its order; NULL for NULL."""
        if texts is None:
            return None
        _check_flat(texts)
        places = [place for place, text in enumerate(texts) if text is not None]
        result: list[str | None] = [None] * len(texts)
        try:
            found = self._vectors([texts[place] for place in places], dim, input_type, model, truncate, revision)
        except EmbedError as error:
            if error.position is not None:
                error.message = f"text {places[error.position] + 1}: {error.message}"
            raise
        for place, vector in zip(places, found, strict=True):
            result[place] = vector
        return result

    @reports
    def embed_query(self, query: str | None, dim: int | None, model: str | None, revision: str | None = None) -> str | None:
        """A query's vector in text form, ahead of bulk work; asked again within `QUERY_CACHE_S` it is not sent again."""
        if query is None:
            return None
        return self._query_vector((query, dim, model, revision))

    @reports
    def identify(self, dim: int | None, model: str | None) -> tuple[int, str, str]:
        """Dimension, model and revision that answer for this `dim` and `model`, found out by embedding a word."""
        page = next(self._connect().embed_pages(["probe"], dim=dim, input_type="query", model=model))
        return page.dim, page.model, page.revision

    @reports
    def count_tokens(self, text: str | None, model: str | None) -> int | None:
        if text is None:
            return None
        return self._connect().count_tokens([text], model=model)[0]

    @reports
    def chunk(self, text: str | None, max_tokens: int | None, overlap: int | None, model: str | None) -> list[tuple[int, int, int, str]]:
        """Rows of (seq, start_char, end_char, content), both counted from 0, `end_char` exclusive."""
        return [(seq, start, end, content) for seq, (start, end, content) in enumerate(self._pieces(text, max_tokens, overlap, model))]

    @reports
    def embed_chunks(
        self, texts: Sequence[Any] | None, max_tokens: int | None, overlap: int | None, dim: int | None, model: str | None, revision: str | None
    ) -> tuple[list[int], list[int], list[int], list[str]]:
        """Cut texts and embed the pieces: the place of each one's text, counted from 1, its start and end in characters, and its vector."""
        texts = texts or []
        _check_flat(texts)
        pieces = [(place, *piece) for place, text in enumerate(texts, 1) for piece in self._pieces(text, max_tokens, overlap, model)]
        vectors = self._vectors([piece for *_, piece in pieces], dim, "passage", model, None, revision)
        return [place for place, *_ in pieces], [start for _, start, *_ in pieces], [end for _, _, end, _ in pieces], vectors

    @reports
    def models(self) -> list[dict[str, Any]]:
        """One row a model, the sidecar's default first."""
        return [
            {
                "name": model.name,
                "revision": model.revision,
                "native_dim": model.native_dim,
                "trained_dims": list(model.trained_dims),
                "declared_dims": list(model.declared_dims),
                "max_tokens": model.max_tokens,
                "pooling": model.pooling,
                "query_prompt": model.query_prompt,
                "passage_prompt": model.passage_prompt,
                "device": model.device,
                "precision": model.precision,
                "is_default": position == 0,
            }
            for position, model in enumerate(self._connect().list_models())
        ]

    def health(self) -> tuple[bool, str, float | None]:
        """Serving or not, why not, and the milliseconds the answer took. A sidecar that is down is an answer here, not an error."""
        begun = time.monotonic()
        try:
            status = self._connect().health()
        except EmbedError as error:
            return False, str(error), None
        return status == "SERVING", status, (time.monotonic() - begun) * 1000

    @property
    def cancelled(self) -> type[Exception]:
        """What PL/Python raises when Postgres cancels the statement."""
        return cast(type[Exception], self._plpy.spiexceptions.QueryCanceled)

    def postgres_error(self, message: str, sqlstate: str, hint: str = "") -> Exception:
        """An error as PL/Python hands it on."""
        error = self._error(message)
        error.__dict__.update(sqlstate=sqlstate, hint=hint or None, detail=None)
        return error

    def _connect(self) -> Client:
        """The client for the configured endpoint; another one after `nv_embed.configure` was called."""
        row = self._plpy.execute(self._read_settings, [self._statement[0]])[0]
        if row["began"] != self._statement[0]:
            self._statement = (row["began"], row["statement_end"])
        self._trace = traceparent.of_session(row["traceparent"], self._statement[1])
        settings = {name: row[name] for name in SETTINGS if name in row}
        if settings["endpoint"] is None:
            raise Unavailable("no sidecar is configured", hint="a superuser runs SELECT nv_embed.configure('host:port'), or 'unix:/path'")
        if settings != self._settings or self._client is None:
            self._queries.clear()
            with signals_blocked():
                if self._client is not None:
                    self._client.close()
                    self._client = None
                # The label keeps the endpoint out of messages: an ordinary role may call, but not learn where the texts go.
                self._client = Client(**settings, caller=self._caller, label="the configured sidecar", trace=lambda: self._trace)
            self._settings = settings
        return self._client

    def _pieces(self, text: str | None, max_tokens: int | None, overlap: int | None, model: str | None) -> list[tuple[int, int, str]]:
        """First character, the one after the last, and content of each piece; of NULL there is none."""
        if text is None:
            return []
        if max_tokens is None:
            raise InvalidInput("max_tokens is null", hint="say how many tokens a piece may have")
        pieces = self._connect().chunk(text, max_tokens, overlap=overlap or 0, model=model)
        return [(piece.start_char, piece.end_char, text[piece.start_char : piece.end_char]) for piece in pieces]

    def _vectors(
        self, texts: Sequence[str], dim: int | None, input_type: str | None, model: str | None, truncate: str | None, revision: str | None
    ) -> list[str]:
        pages = self._connect().embed_pages(
            texts, dim=dim, input_type=input_type or "passage", model=model, revision=revision, truncate=truncate or "NONE"
        )
        return [orjson.dumps(row.tolist()).decode() for page in pages for row in page.rows()]

    def _query_vector(self, key: tuple[str, int | None, str | None, str | None]) -> str:
        query, dim, model, revision = key
        client, now = self._connect(), time.monotonic()
        kept = self._queries.get(key)
        if kept is not None and now - kept[0] < QUERY_CACHE_S:
            return kept[1]
        page = next(client.embed_pages([query], dim=dim, input_type="query", model=model, revision=revision))
        vector = orjson.dumps(next(page.rows()).tolist()).decode()
        self._queries[key] = (now, vector)
        self._queries.move_to_end(key)
        if len(self._queries) > QUERY_CACHE_ENTRIES:
            self._queries.popitem(last=False)
        return vector
