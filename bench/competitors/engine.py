"""
This project's engine: texts are tokenised, cut into batches as the scheduler cuts them, and computed, in one process and without a server.

    engine.py MODEL PRECISION [DEVICE]
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from nv_embed_sidecar.engines import Engine, Vectors
from nv_embed_sidecar.models import Model, load
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType, Truncate
from turns import take_turns


class OurEngine:
    def __init__(self, model: str, precision: str, device: str) -> None:
        self._model = next(iter(load(Settings(models=(model,), precision=precision, device=device))))
        self._lengths: list[int] = []

    def about(self) -> Mapping[str, Any]:
        engine = self._model.engine
        return {
            "model": self._model.name,
            "prompt": self._model.prompt(InputType.PASSAGE),
            "device": engine.device,
            "precision": engine.precision,
            "batch_tokens": engine.capacity.batch_tokens,
            "lengths": self._lengths,
            "cost": sum(map(engine.cost, self._lengths)),
        }

    def prepare(self, texts: Sequence[str]) -> None:
        self._lengths = [len(ids) for ids in self._model.tokenizer.encode(texts, InputType.PASSAGE, Truncate.END)]

    def encode(self, texts: Sequence[str]) -> Any:
        return encode(self._model, texts, InputType.PASSAGE)


def encode(model: Model, texts: Sequence[str], input_type: InputType) -> Vectors:
    """Vectors of unit length, as a sidecar with nothing else to do would compute them."""
    return truncate(encode_ids(model.engine, model.tokenizer.encode(texts, input_type, Truncate.END)), model.engine.width)


def encode_ids(engine: Engine, ids: Sequence[Sequence[int]]) -> Vectors:
    vectors = numpy.empty((len(ids), engine.width), dtype=numpy.float32)
    for positions in batches([engine.cost(len(each)) for each in ids], engine.capacity.batch_tokens):
        vectors[positions] = engine.encode([ids[position] for position in positions])
    return vectors


def batches(costs: Sequence[float], budget: float) -> list[list[int]]:
    """Positions of texts in batches of at most `budget`, or of one text; texts of nearly equal cost together."""
    cut: list[list[int]] = []
    room = 0.0
    for position in sorted(range(len(costs)), key=lambda position: -costs[position]):
        if not cut or costs[position] > room:
            cut.append([])
            room = budget
        cut[-1].append(position)
        room -= costs[position]
    return cut


if __name__ == "__main__":
    model, precision, *device = sys.argv[1:]
    take_turns(OurEngine(model, precision, device[0] if device else "auto"))
