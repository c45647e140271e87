"""
sentence-transformers.

    sentence.py DIRECTORY PRECISION BATCH_SIZE      BATCH_SIZE is a number, or `best`: the quickest of a few, found anew for each set of texts
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from turns import take_turns

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCH_SIZES = (4, 8, 16, 32, 64, 128)
TRIAL_TEXTS = 128


class Sentence:
    def __init__(self, directory: str, precision: str, batch_size: str) -> None:
        self._model = SentenceTransformer(directory, device="cpu", model_kwargs={"dtype": TYPES[precision]})
        self._precision = precision
        self._find_best = batch_size == "best"
        self._batch_size = 32 if self._find_best else int(batch_size)

    def about(self) -> Mapping[str, Any]:
        return {"precision": self._precision, "batch_size": self._batch_size}

    def prepare(self, texts: Sequence[str]) -> None:
        if self._find_best:
            sample = texts[:TRIAL_TEXTS]
            self._encode(sample, BATCH_SIZES[0])
            self._batch_size = min(BATCH_SIZES, key=lambda size: self._seconds(sample, size))

    def encode(self, texts: Sequence[str]) -> Any:
        return self._encode(texts, self._batch_size)

    def _encode(self, texts: Sequence[str], batch_size: int) -> Any:
        return self._model.encode(list(texts), batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)

    def _seconds(self, texts: Sequence[str], batch_size: int) -> float:
        begun = time.perf_counter()
        self._encode(texts, batch_size)
        return time.perf_counter() - begun


if __name__ == "__main__":
    take_turns(Sentence(*sys.argv[1:]))
