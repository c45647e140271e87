"""
Vectors that no model made, but that lie as a Matryoshka-trained model's do.

Three properties make searching easy or hard, and each has its law here:

- *Decaying spectrum.* Component i has a standard deviation of (i + 1) ** -DECAY. Training at several widths puts what matters into the first
  components: a prefix ranks nearly as the whole does, but not quite.
- *Clusters in clusters.* A document is the sum of what all have in common, of its area, of its topic and of its own, each with a weight of LEVELS; so
  any two are a little alike, as in every trained encoder. Each topic is of one area. Few topics are frequent and many rare: the k-th is drawn with a
  probability in proportion to 1 / k, as words are.
- *Queries are near documents, and are none.* A query is a document plus DISTANCE times a vector of its own.

All parts have the same spectrum. Everything is scaled to unit length and rounded to half precision, as it is stored.

Of 20,000 documents the nearest to a query is at a cosine of 0.82 and the tenth at 0.61 (medians), any two are at 0.18; their covariance has a
participation ratio of 63, as if so many directions of 2048 mattered; and exact search by 384 components alone finds 0.83 of the ten that the whole
vectors find, by 768 0.90. These are in the range of trained retrievers, with which the generator was not compared component by component. Signs weigh
all components alike, so that here, where the last ones carry little, they lose more than with vectors of a flat spectrum.

In:  a seed      Out: blocks of unit vectors, always the same
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float32]

DECAY = 0.4
LEVELS = (0.5, 0.7, 0.7, 0.7)
DISTANCE = 0.7
AREAS, TOPICS = 100, 2000
BLOCK = 10_000


@dataclass(frozen=True)
class Collection:
    """Documents and queries.

    Attributes:
        rows: how many documents.
        dim: components of a vector.
    """

    rows: int
    dim: int = 2048
    seed: int = 1

    def documents(self) -> Iterator[Floats]:
        """Blocks [BLOCK or fewer, dim], rounded to half precision."""
        centres = self._centres(numpy.random.default_rng([self.seed, 0]))
        shares = 1 / numpy.arange(1, TOPICS + 1)
        for number, first in enumerate(range(0, self.rows, BLOCK)):
            random = numpy.random.default_rng([self.seed, 1, number])
            size = min(BLOCK, self.rows - first)
            topics = random.choice(TOPICS, size=size, p=shares / shares.sum())
            yield _rounded(centres[topics] + LEVELS[3] * self._own(random, size))

    def queries(self, count: int) -> Floats:
        """[count, dim], near to documents of the first block."""
        random = numpy.random.default_rng([self.seed, 2])
        block = next(self.documents())
        near = block[random.choice(len(block), size=count, replace=len(block) < count)]
        own = self._own(random, count)
        return _rounded(near + DISTANCE * own / numpy.linalg.norm(own, axis=1, keepdims=True))

    def _centres(self, random: numpy.random.Generator) -> Floats:
        common, areas, topics = (weight * self._own(random, count) for weight, count in zip(LEVELS, (1, AREAS, TOPICS), strict=False))
        return common + areas[random.integers(AREAS, size=TOPICS)] + topics

    def _own(self, random: numpy.random.Generator, count: int) -> Floats:
        spectrum = (1 + numpy.arange(self.dim, dtype=numpy.float32)) ** -DECAY
        return random.standard_normal((count, self.dim), dtype=numpy.float32) * spectrum


def nearest(collection: Collection, queries: Floats, k: int, dim: int | None = None) -> "tuple[NDArray[numpy.int64], Floats]":
    """The k documents with the largest cosine to each query, over all of them, and these cosines: [count, k] each, best first.

    Args:
        dim: by so many first components only.
    """
    asked = _unit(queries[:, :dim])
    keys = numpy.empty((len(queries), 0), numpy.int64)
    cosines = numpy.empty((len(queries), 0), numpy.float32)
    for number, block in enumerate(collection.documents()):
        found = asked @ _unit(block[:, :dim]).T
        best = numpy.argpartition(-found, min(k, len(block) - 1), axis=1)[:, :k]
        keys = numpy.concatenate([keys, best + number * BLOCK], axis=1)
        cosines = numpy.concatenate([cosines, numpy.take_along_axis(found, best, axis=1)], axis=1)
    order = numpy.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return numpy.take_along_axis(keys, order, axis=1), numpy.take_along_axis(cosines, order, axis=1)


def recall(found: list[int], wanted: "NDArray[numpy.int64]") -> float:
    """The share of the wanted that was found."""
    return len(set(found) & {int(key) for key in wanted}) / len(wanted)


def _unit(vectors: Floats) -> Floats:
    return vectors / numpy.linalg.norm(vectors, axis=1, keepdims=True)


def _rounded(vectors: Floats) -> Floats:
    return _unit(vectors).astype(numpy.float16).astype(numpy.float32)
