"""
Infinity, in its own environment (`environment.py`) and as it comes: fp32 on a CPU, BetterTransformer, batches of 32.

    infinity.py DIRECTORY
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy
from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from turns import take_turns


class Infinity:
    def __init__(self, directory: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(model_name_or_path=directory, engine="torch", device="cpu", dtype="float32", model_warmup=False)
        )
        self._loop.run_until_complete(self._engine.astart())

    def about(self) -> Mapping[str, Any]:
        return {"precision": "fp32", "version": version("infinity-emb")}

    def prepare(self, texts: Sequence[str]) -> None: ...

    def encode(self, texts: Sequence[str]) -> Any:
        vectors, _ = self._loop.run_until_complete(self._engine.embed(sentences=list(texts)))
        return numpy.stack(vectors)

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.astop())


if __name__ == "__main__":
    infinity = Infinity(sys.argv[1])
    take_turns(infinity)
    infinity.close()
