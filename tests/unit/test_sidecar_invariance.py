"""
The vector of a text is its own: alone, in any batch, in any order, next to any neighbour, on any number of cores.

On the CPU it is so to the last bit, in every precision.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from checkpoints import BERT, LLAMA, bert, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from nv_embed_sidecar.models import Model
from proofs import LEAST_COSINE, alone, batches, is_invariant, is_same, sequence, served

VOCABULARY = {"minilm": 30_522, "llama": LLAMA["vocab_size"], "bert": BERT["vocab_size"]}
LONGEST = {"minilm": 256, "llama": 700, "bert": 512}

NEIGHBOURS = (1, 2, 6, 7, 8, 23, 24, 39, 40, 55, 56, 119, 120, 247, 248)
"""Tokens beside a text of 9: kernels work in tiles of rows, and the last tile is often another kernel's."""


@pytest.fixture(scope="module", params=[pytest.param("minilm", marks=pytest.mark.minilm), "llama", "bert"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path | str:
    return kind if kind == "minilm" else {"llama": llama, "bert": bert}[kind](tmp_path_factory.mktemp("small") / kind)


@pytest.fixture(scope="module", params=LEAST_COSINE)
def models(source: Path | str, request: pytest.FixtureRequest) -> dict[int, Model]:
    """One model, by the number of cores that it computes on."""
    return {threads: served(source, precision=request.param, threads=threads) for threads in (1, 2)}


@given(data=st.data())
@settings(max_examples=5)
def test_a_text_has_one_vector_in_every_batch_and_on_any_number_of_cores(kind: str, models: dict[int, Model], data: st.DataObject) -> None:
    texts, order, most = data.draw(batches(VOCABULARY[kind], LONGEST[kind]))
    expected = alone(models[1], texts)
    for model in models.values():
        is_invariant(model, texts, order, most, expected)
    is_same(models[2], alone(models[2], texts), expected)


@pytest.mark.parametrize("length", [1, 2, 33])
def test_equal_texts_in_one_batch_have_one_vector(kind: str, models: dict[int, Model], length: int) -> None:
    model, text = models[2], sequence(length, VOCABULARY[kind])
    expected = alone(models[1], [text])
    for copies in (2, 3, 7, 33, 70):
        is_same(model, model.engine.encode([text] * copies), numpy.repeat(expected, copies, axis=0))


def test_the_number_of_tokens_beside_a_text_does_not_matter(kind: str, models: dict[int, Model]) -> None:
    model, text = models[2], sequence(9, VOCABULARY[kind])
    expected = alone(models[1], [text])
    for length in NEIGHBOURS:
        is_same(model, model.engine.encode([sequence(length, VOCABULARY[kind]), text])[1:], expected)


def test_many_short_texts_beside_a_few_long_ones_keep_their_vectors(kind: str, models: dict[int, Model]) -> None:
    longest = LONGEST[kind]
    lengths = [longest, *(3 + position % 11 for position in range(70)), longest - 1, longest // 2, longest // 2]
    texts = [sequence(length, VOCABULARY[kind], seed) for seed, length in enumerate(lengths)]
    expected = alone(models[1], texts)
    for model in models.values():
        is_invariant(model, texts, order=range(len(texts))[::-1], most=61, expected=expected)


def test_a_short_text_that_is_computed_beside_a_batch_has_its_vector_and_so_have_the_others(kind: str, models: dict[int, Model]) -> None:
    model = models[2]
    texts = [sequence(length, VOCABULARY[kind], seed) for seed, length in enumerate([LONGEST[kind], *(3 + position % 40 for position in range(60))])]
    short = [sequence(length, VOCABULARY[kind]) for length in (1, 5, 9, 17)]
    expected, expected_short = alone(models[1], texts), alone(models[1], short)
    with ThreadPoolExecutor(1) as beside:
        for _ in range(5):
            computing = beside.submit(alone, model, short * 3)
            is_same(model, model.engine.encode(texts), expected)
            is_same(model, computing.result(), numpy.tile(expected_short, (3, 1)))


def test_a_text_has_one_vector_in_8_bits_too(kind: str, source: Path | str) -> None:
    """Each row has its own scale; one for the whole batch would be quicker."""
    texts = [sequence(length, VOCABULARY[kind], seed) for seed, length in enumerate((200, 1, 2, 9, 9, 33, 100, 16, 17))]
    model = served(source, precision="int8", threads=2)
    is_invariant(model, texts, order=range(len(texts))[::-1], most=4, expected=alone(model, texts))


def test_the_comparison_would_notice_a_change_of_the_last_digit(kind: str, models: dict[int, Model]) -> None:
    model = models[1]
    (vector,) = vectors = model.engine.encode([sequence(20, VOCABULARY[kind])])
    changed = vectors.copy()
    changed[0, 5] = numpy.nextafter(vector[5], numpy.float32(numpy.inf))
    with pytest.raises(AssertionError):
        is_same(model, vectors, changed)
