"""
A model without weights, for tests and trials.

Every word has a fixed direction drawn from a hash of it, and a text is the sum of its words, long words counting more. Texts that share words are
therefore close, in every prefix of the vector too, and the same text has the same vector on every machine and in every release.

In:  text      Out: one token a word; vectors
"""

import hashlib
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy

from nv_embed_sidecar.engines import Capacity, OutOfMemory, Vectors

WIDTH = 2048
WORD = re.compile(r"\w+|[^\w\s]")
START_ID = 1
HASH_BITS, LENGTH_BITS = 32, 4

# What fits while memory is rehearsed to be short.
SCARCE_TEXTS = 4
LOOK_S = 0.05


class FakeEngine:
    """Word hashes to vectors.

    Args:
        delay_s: how long it waits for each batch, as a slow device would.
        fault_file: while this file exists, the word in it is a fault to rehearse: `error`, nothing can be computed or rebuilt; `oom`, more than a few
            texts do not fit; `hang`, a batch does not end before the file is gone.
    """

    width = WIDTH
    device = "cpu"
    precision = "fp32"
    capacity = Capacity(tokens_per_s=100_000, batch_tokens=1024, most_tokens=1024)

    def __init__(self, delay_s: float = 0.0, fault_file: Path | None = None) -> None:
        self._delay_s = delay_s
        self._fault_file = fault_file

    def cost(self, tokens: int) -> float:
        return tokens

    def rows(self, lengths: Sequence[int]) -> int:
        return sum(lengths)

    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        if self._delay_s:
            time.sleep(self._delay_s)
        self._rehearse(len(batch))
        return numpy.stack([_vector(ids) for ids in batch])

    def rebuild(self) -> None:
        """There is nothing to load."""
        self._rehearse(1)

    def _rehearse(self, texts: int) -> None:
        fault = self._fault()
        if fault == "oom" and texts > SCARCE_TEXTS:
            raise OutOfMemory(f"rehearsed: {texts} texts do not fit")
        if fault == "error":
            raise RuntimeError("rehearsed: the device is gone")
        while self._fault() == "hang":
            time.sleep(LOOK_S)

    def _fault(self) -> str:
        if self._fault_file is None:
            return ""
        try:
            return self._fault_file.read_text().strip()
        except FileNotFoundError:
            return ""


class FakeVocabulary:
    """One token a word or sign. The id holds a hash of the word in lower case and, in its lowest bits, the word's length."""

    prefix = (START_ID,)
    suffix = ()
    size = 1 << HASH_BITS + LENGTH_BITS

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_word_id(word) for word in WORD.findall(text)] for text in texts]

    def ids_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        words = list(WORD.finditer(text))
        return [_word_id(word.group()) for word in words], [word.span() for word in words]

    def text(self, ids: Sequence[int]) -> str | None:
        del ids
        return None


@lru_cache(maxsize=16384)
def _word_id(word: str) -> int:
    word = word.lower()
    digest = hashlib.blake2b(word.encode(), digest_size=HASH_BITS // 8).digest()
    return int.from_bytes(digest, "big") << LENGTH_BITS | min(len(word), (1 << LENGTH_BITS) - 1)


@lru_cache(maxsize=16384)
def _direction(token_id: int) -> bytes:
    return hashlib.shake_128(token_id.to_bytes(8, "big")).digest(WIDTH // 8)


def _vector(ids: Sequence[int]) -> Vectors:
    packed = numpy.frombuffer(b"".join(map(_direction, ids)), dtype=numpy.uint8).reshape(len(ids), WIDTH // 8)
    signs = numpy.unpackbits(packed, axis=1).astype(numpy.float32) * 2 - 1
    weights = numpy.array([max(token_id & (1 << LENGTH_BITS) - 1, 1) for token_id in ids], dtype=numpy.float32)
    vector: Vectors = weights @ signs / weights.sum()
    return vector
