"""
Vectors as a client wants them: of floats, bytes or bits, as numbers or in base64.

`int8` is a vector scaled so that its largest component is 127: the angles between vectors stay, and no text's vector depends on any other's. `uint8`
is that with 128 added. `ubinary` has one bit a component, set where that is over 0, as pgvector's binary_quantize() sets it; `binary` is the same
bytes less 128.

In:  vectors of unit length      Out: the pieces of a body of JSON
"""

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import orjson
from numpy.typing import NDArray

from nv_embed_sidecar.engines import Vectors

Components = NDArray[Any]

PIECE_COMPONENTS = 65_536
"""Of a body, made at a time: some milliseconds in which no other thread of this process runs."""

LARGEST = 127


def _int8(vectors: Vectors) -> Components:
    largest = numpy.abs(vectors).max(axis=1, keepdims=True, initial=numpy.finfo(numpy.float32).tiny)
    scaled: Components = numpy.rint(vectors * (LARGEST / largest)).astype(numpy.int8)
    return scaled


def _uint8(vectors: Vectors) -> Components:
    return (_int8(vectors).astype(numpy.int16) + 128).astype(numpy.uint8)


def _ubinary(vectors: Vectors) -> Components:
    return numpy.packbits(vectors > 0, axis=1)


def _binary(vectors: Vectors) -> Components:
    return (_ubinary(vectors).astype(numpy.int16) - 128).astype(numpy.int8)


def _float(vectors: Vectors) -> Components:
    return vectors.astype("<f4", copy=False)


KINDS: dict[str, Callable[[Vectors], Components]] = {"float": _float, "int8": _int8, "uint8": _uint8, "binary": _binary, "ubinary": _ubinary}


def body(vectors: Vectors, *, model: str, tokens: int, embedding_type: str = "float", encoding_format: str = "float") -> Iterator[bytes]:
    """OpenAI's list object, piece by piece.

    Args:
        vectors: [n, dim].
        tokens: of all texts together.
    """
    step = max(PIECE_COMPONENTS // max(vectors.shape[1], 1), 1)
    yield b'{"object":"list","data":['
    for first in range(0, len(vectors), step):
        components = KINDS[embedding_type](vectors[first : first + step])
        items = [
            {"object": "embedding", "index": index, "embedding": b64encode(row.tobytes()).decode() if encoding_format == "base64" else row}
            for index, row in enumerate(components, first)
        ]
        yield (b"," if first else b"") + orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    yield b"]," + orjson.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})[1:]
