"""
What is shown of an engine, on whatever device: that its vectors are the card's arithmetic, and that a text's vector is its own.

The tests for the CPU and those for a GPU call the same functions.

In:  a served model, token ids      Out: an AssertionError where it falls short
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from nv_embed_sidecar.engines import torch_device
from nv_embed_sidecar.models import Model, load
from nv_embed_sidecar.pooling import truncate
from nv_embed_sidecar.settings import Settings
from reference import Weights, mean_vector

from nv_embed.errors import InvalidInput

LEAST_COSINE = {"fp32": 0.99999, "bf16": 0.999}
"""To the float64 reference, as it is asked of every device."""

LEAST_COSINE_ON_CPU = {"fp32": 1 - 1e-10, "bf16": 0.999}
"""What single precision really gives: an approximate gelu or another eps would pass for exact without it."""

FURTHEST = {"fp32": 1e-6, "bf16": 1e-4}
"""Cosine distance between two vectors of one text, where a device's kernels do not repeat themselves bit for bit."""

BIT_FOR_BIT = ("cpu",)

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

LEAST_CHANGE = 1e-5
"""Of a hidden state in fp32; rounding stays below, and where a token is not attended to there is no change at all."""

LENGTHS = (1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1000, 2047, 2048, 2049, 4096)
"""On both sides of where a kernel may change its way; the longest, 8192, has a test of its own."""

PARAMETERS_1B = 1_235_814_400
PARAMETERS_1B_WITHOUT_EMBEDDINGS = 973_146_112

Ids = Sequence[int]


@cache
def refusal(device: str, precision: str) -> str:
    """Why this machine does not compute so; nothing where it does."""
    try:
        torch_device.choose(device, precision, 1)
    except InvalidInput as refused:
        return str(refused)
    return ""


def served(directory: Path | str, *, device: str = "cpu", precision: str = "fp32", **settings: Any) -> Model:
    """The model of a directory, in a precision that this machine has."""
    if refused := refusal(device, precision):
        pytest.skip(refused)
    return next(iter(load(Settings(models=(str(directory),), device=device, precision=precision, **settings))))


def sequence(length: int, vocabulary: int, seed: int = 0) -> list[int]:
    """Random token ids."""
    return [int(token) for token in numpy.random.default_rng([seed, length]).integers(0, vocabulary, length)]


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[numpy.float64]:
    one, other = one.astype(numpy.float64), other.astype(numpy.float64)
    found: NDArray[numpy.float64] = (one * other).sum(axis=1) / numpy.linalg.norm(one, axis=1) / numpy.linalg.norm(other, axis=1)
    return found


@cache
def reference_vector(directory: Path, ids: tuple[int, ...]) -> NDArray[numpy.float64]:
    """Cached, because it is the same for every precision and device."""
    return mean_vector(directory, ids)


def is_exact(model: Model, directory: Path, texts: Sequence[Ids], dims: Sequence[int] = ()) -> None:
    """Together and alone, and at each dimension, the vectors are unit length and those of the reference."""
    expected = numpy.stack([reference_vector(directory, tuple(ids)) for ids in texts])
    least = (LEAST_COSINE_ON_CPU if model.engine.device == "cpu" else LEAST_COSINE)[model.engine.precision]
    for vectors in (model.engine.encode(texts), alone(model, texts)) if len(texts) > 1 else (model.engine.encode(texts),):
        assert (vectors.dtype, vectors.shape) == (numpy.float32, expected.shape)
        for dim in (model.native_dim, *dims):
            cut = truncate(vectors, dim)
            numpy.testing.assert_allclose(numpy.linalg.norm(cut, axis=1), 1, rtol=1e-6)
            assert cosines(cut, expected[:, :dim]).min() >= least, f"at {dim} dimensions"


def is_same(model: Model, one: NDArray[numpy.float32], other: NDArray[numpy.float32]) -> None:
    """Two vectors of each text are equal to the last bit, or as near as the device's kernels let them be."""
    if model.engine.device in BIT_FOR_BIT:
        numpy.testing.assert_array_equal(one, other)
    else:
        assert (1 - cosines(one, other)).max() <= FURTHEST[model.engine.precision]


def alone(model: Model, texts: Sequence[Ids]) -> NDArray[numpy.float32]:
    return numpy.concatenate([model.engine.encode([ids]) for ids in texts])


def is_invariant(model: Model, texts: Sequence[Ids], order: Sequence[int], most: int, expected: NDArray[numpy.float32]) -> None:
    """Each text has its expected vector: with all the others, and in another order in batches of at most `most`."""
    is_same(model, model.engine.encode(texts), expected)
    shuffled = [texts[position] for position in order]
    parts = [model.engine.encode(shuffled[start : start + most]) for start in range(0, len(shuffled), most)]
    is_same(model, numpy.concatenate(parts), expected[list(order)])


@st.composite
def batches(draw: st.DrawFn, vocabulary: int, longest: int) -> tuple[list[list[int]], list[int], int]:
    """Texts, most of them short, some long, some of equal length and some equal; an order of them; a size of batches."""
    lengths = draw(st.lists(st.integers(1, 12) | st.integers(1, 64) | st.integers(1, longest), min_size=2, max_size=10))
    seed = draw(st.integers(0, 2**16))
    texts = [sequence(length, vocabulary, seed + position) for position, length in enumerate(lengths)]
    texts += [texts[position] for position in draw(st.lists(st.integers(0, len(texts) - 1), max_size=3))]
    return texts, draw(st.permutations(range(len(texts)))), draw(st.integers(1, len(texts)))


def sees_the_whole_text(model: Model, vocabulary: int, length: int) -> None:
    """Another last token changes the first token's hidden state, by more than rounding would."""
    ids = sequence(length, vocabulary)
    one, other = (model.engine.hidden_states([*ids[:-1], last]).cpu().numpy() for last in (ids[-1], (ids[-1] + 1) % vocabulary))
    assert one.shape == (length, model.native_dim)
    assert numpy.abs(one[0] - other[0]).max() > LEAST_CHANGE


def is_the_1b_model(model: Model, directory: Path) -> None:
    """The shape of the published model, on random weights: what is checked is its size, that it runs, and all that is asked of a small one."""
    weights = Weights(directory, "embed_tokens.weight")
    assert weights.parameters() == PARAMETERS_1B
    assert weights.parameters() - weights.parameters("embed_tokens.weight") == PARAMETERS_1B_WITHOUT_EMBEDDINGS
    assert (model.native_dim, model.trained_dims, model.tokenizer.max_tokens) == (2048, (2048, 1024, 768, 512, 384), 8192)
    vocabulary = 128_256
    is_exact(model, directory, [sequence(8, vocabulary)], model.trained_dims)
    texts = [sequence(length, vocabulary) for length in (3, 70, 8, 20, 8)]
    is_invariant(model, texts, order=[4, 2, 0, 1, 3], most=3, expected=alone(model, texts))
    sees_the_whole_text(model, vocabulary, 8)
