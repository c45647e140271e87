"""
What a request for embeddings says.

In:  a body of JSON      Out: `EmbeddingsRequest`, or what is wrong with it
"""

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nv_embed_sidecar.http.failures import Unprocessable

# Each stops at the first item that is none of its kind: a megabyte of them would otherwise be a hundred of errors.
TokenId = Annotated[int, Field(ge=0, strict=True)]
Text = Annotated[str, Field(strict=True)]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Inputs = Text | Texts | Tokens | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]

SUFFIXES: dict[str, Literal["query", "passage"]] = {"-query": "query", "-passage": "passage"}


class EmbeddingsRequest(BaseModel):
    """Texts, or token ids of the model's own vocabulary, and how their vectors are wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="EmbeddingsRequest")

    input: Inputs = Field(description="A text, texts, the token ids of one text, or those of several.")
    model: str = Field("", description="As /v1/models lists it, the first one unless given; -query or -passage behind it says the input_type.")
    input_type: Literal["query", "passage"] | None = Field(None, description="What the texts are: passages unless given.")
    truncate: Literal["NONE", "START", "END"] = Field("NONE", description="Where a text that is too long is cut; NONE refuses it.")
    dimensions: int | None = Field(None, ge=1, strict=True, description="Width of the vectors, one that the model was trained for.")
    encoding_format: Literal["float", "base64"] = Field("float", description="Numbers, or their little-endian bytes in base64.")
    embedding_type: Literal["float", "int8", "uint8", "binary", "ubinary"] = Field("float", description="What a vector is made of.")
    user: str | None = Field(None, description="Not looked at.")

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """One a text."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input

    @property
    def is_of_nim(self) -> bool:
        """Whether it says anything that OpenAI's API does not have."""
        return not self.model_fields_set.isdisjoint({"input_type", "truncate", "embedding_type"})


def read(body: bytes) -> EmbeddingsRequest:
    """A request.

    Raises:
        Unprocessable: it is none.
    """
    # Not by pydantic, whose tree of a body's JSON takes up to fifty times as much memory as the body, beside what is made of it.
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Unprocessable("the body is not JSON", hint="send one JSON object") from None
    if not isinstance(said, dict):
        raise Unprocessable("the body should be an object", hint="send one JSON object")
    fields = EmbeddingsRequest.model_fields
    try:
        request = EmbeddingsRequest.model_validate({name: said[name] for name in fields if name in said})
    except ValidationError as error:
        raise _told(error) from None
    # Not by pydantic either, which would make an error of each.
    if (name := next((name for name in said if name not in fields), None)) is not None:
        raise Unprocessable(f"there is no field {name[:100]!r}", hint=f"the fields are {', '.join(fields)}", param=name[:100])
    return request


def _told(error: ValidationError) -> Unprocessable:
    """The first thing that is wrong, without a word of what was sent."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = str(first["loc"][0])
    if name == "input":
        return Unprocessable(
            "input is neither text nor token ids", hint="send a text, texts, token ids or lists of them, and no empty list", param=name
        )
    said = first["msg"][0].lower() + first["msg"][1:]
    return Unprocessable(f"{name}: {said}", param=name)
