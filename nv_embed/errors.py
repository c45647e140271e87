"""
The one table of errors.

An error has a class, and the class decides everything else: the gRPC status that carries it over the wire, the HTTP status a web client sees, the
SQLSTATE that Postgres reports and what a worker does next. Whoever raises one writes three short texts: what was wrong, the limit that was met, and
the remedy.

    EmbedError
     ├── InvalidInput        the caller must change the request
     ├── UnknownModel        the caller must name another model
     ├── Unauthenticated     the operator must mend the credentials
     ├── Overloaded          ask again after `retry_after_s`
     ├── Unavailable         no sidecar answers; ask again later
     ├── DeadlineExceeded    no answer in time
     └── EngineFailure       the model itself failed
"""

from enum import Enum
from typing import ClassVar


class WorkerAction(Enum):
    """What a worker does with the rows of a call that failed."""

    FAIL_ROW = "fail the row"
    RETRY = "retry"
    RETRY_AND_ALARM = "retry, alarm"
    RETRY_THEN_FAIL = "retry n times, then fail"
    WAIT = "wait, not an attempt"


class EmbedError(Exception):
    """What every failure of an embedding call is.

    Attributes:
        message: what was wrong and the limit that was met; lower case, no full stop.
        hint: what to do about it; may be empty.
        retry_after_s: seconds until another try may succeed, where the sidecar said so.
        position: which text of the request was at fault, counted from 0; None where it was not one of them.
    """

    grpc_code: ClassVar[str] = "UNKNOWN"
    http_status: ClassVar[int] = 500
    sqlstate: ClassVar[str] = "38000"
    worker_action: ClassVar[WorkerAction] = WorkerAction.RETRY_THEN_FAIL

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None, position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.retry_after_s = retry_after_s
        self.position = position

    def __str__(self) -> str:
        text = self.message if self.position is None else f"text {self.position + 1}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class InvalidInput(EmbedError):
    """The request itself is wrong: a text too long, a dimension the model was not trained for."""

    grpc_code = "INVALID_ARGUMENT"
    http_status = 400
    sqlstate = "22023"
    worker_action = WorkerAction.FAIL_ROW


class UnknownModel(EmbedError):
    """The sidecar does not serve this model, or serves another revision of it."""

    grpc_code = "NOT_FOUND"
    http_status = 404
    sqlstate = "42704"
    worker_action = WorkerAction.FAIL_ROW


class Unauthenticated(EmbedError):
    """The sidecar does not accept the credentials."""

    grpc_code = "UNAUTHENTICATED"
    http_status = 401
    sqlstate = "28000"
    worker_action = WorkerAction.RETRY_AND_ALARM


class Overloaded(EmbedError):
    """The sidecar's queue is full; `retry_after_s` says when to come back."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429
    sqlstate = "53000"
    worker_action = WorkerAction.WAIT


class Unavailable(EmbedError):
    """No sidecar answers at the endpoint."""

    grpc_code = "UNAVAILABLE"
    http_status = 503
    sqlstate = "58000"
    worker_action = WorkerAction.RETRY


class DeadlineExceeded(EmbedError):
    """The sidecar did not answer within the time the caller gave it."""

    grpc_code = "DEADLINE_EXCEEDED"
    http_status = 504
    sqlstate = "57014"
    worker_action = WorkerAction.RETRY


class EngineFailure(EmbedError):
    """The engine failed while it computed."""

    grpc_code = "INTERNAL"
    http_status = 500
    sqlstate = "38000"
    worker_action = WorkerAction.RETRY_THEN_FAIL


TABLE: tuple[type[EmbedError], ...] = (
    InvalidInput,
    UnknownModel,
    Unauthenticated,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    EngineFailure,
)

BY_GRPC_CODE: dict[str, type[EmbedError]] = {error.grpc_code: error for error in TABLE}
