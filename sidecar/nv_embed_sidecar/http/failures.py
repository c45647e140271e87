"""
Failures as HTTP says them.

The status is that of the table in `nv_embed/errors.py`. A body has NVIDIA's shape, `{"error": text, "detail": what to do}`, where the request says
anything that only NVIDIA's API has, and else OpenAI's, `{"error": {"message": …, "type": …, "param": …, "code": …}}`: their clients read one each.

In:  an error      Out: a status, headers and a body
"""

import math
from collections.abc import Mapping

from starlette.responses import JSONResponse

from nv_embed.errors import DeadlineExceeded, EmbedError, InvalidInput, Overloaded, Unauthenticated, UnknownModel
from nv_embed_sidecar.tokenising import TooLong

CODES: dict[type[EmbedError], str] = {
    TooLong: "context_length_exceeded",
    UnknownModel: "model_not_found",
    Unauthenticated: "invalid_api_key",
    Overloaded: "rate_limit_exceeded",
}
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Unprocessable(InvalidInput):
    """A request is not of the form that the API has.

    Attributes:
        param: the field that is wrong.
    """

    http_status = 422

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class TooLarge(InvalidInput):
    """A body is larger than any that is looked at."""

    http_status = 413


class TooSlow(DeadlineExceeded):
    """A body did not come in time."""

    http_status = 408


def response(error: EmbedError, *, is_of_nim: bool, inputs: int = 1) -> JSONResponse:
    """A failure of a request with so many texts."""
    headers = _headers(error)
    at = "" if error.position is None or inputs == 1 else f"input[{error.position}]: "
    if is_of_nim:
        return JSONResponse({"error": at + _in_nims_words(error), "detail": error.hint}, error.http_status, headers)
    message = at + error.message
    param = getattr(error, "param", None if error.position is None else "input")
    return openai(f"{message} ({error.hint})" if error.hint else message, error.http_status, headers, param=param, code=CODES.get(type(error)))


def openai(message: str, status: int, headers: Mapping[str, str] | None = None, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """A failure in OpenAI's shape."""
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


def _in_nims_words(error: EmbedError) -> str:
    if isinstance(error, TooLong):
        return f"Input length {error.tokens} exceeds maximum allowed token size {error.max_tokens}"
    return error.message


def _headers(error: EmbedError) -> dict[str, str]:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(math.ceil(error.retry_after_s), 1))
        headers["Retry-After-Ms"] = str(math.ceil(error.retry_after_s * 1000))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return headers
