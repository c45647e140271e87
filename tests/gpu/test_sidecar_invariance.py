"""
The vector of a text on a GPU does not depend on its batch, by the bounds for kernels that choose their way by the size of the work.
"""

from pathlib import Path

import numpy
import pytest
from checkpoints import BERT, LLAMA, bert, llama
from hypothesis import given, settings
from hypothesis import strategies as st
from nv_embed_sidecar.models import Model
from proofs import LEAST_COSINE, ON_GPU, alone, batches, is_invariant, is_same, sequence, served

pytestmark = ON_GPU

DEVICE = "cuda"
VOCABULARY = {"llama": LLAMA["vocab_size"], "bert": BERT["vocab_size"]}
LONGEST = {"llama": 2000, "bert": 512}


@pytest.fixture(scope="module", params=VOCABULARY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return {"llama": llama, "bert": bert}[kind](tmp_path_factory.mktemp("small") / kind)


@pytest.fixture(scope="module", params=LEAST_COSINE)
def model(checkpoint: Path, request: pytest.FixtureRequest) -> Model:
    return served(checkpoint, device=DEVICE, precision=request.param)


@given(data=st.data())
@settings(max_examples=30)
def test_a_text_has_one_vector_whatever_it_is_batched_with(kind: str, model: Model, data: st.DataObject) -> None:
    texts, order, most = data.draw(batches(VOCABULARY[kind], LONGEST[kind]))
    is_invariant(model, texts, order, most, alone(model, texts))


@pytest.mark.parametrize("copies", [2, 7, 64, 1000])
def test_equal_texts_in_one_batch_have_one_vector(kind: str, model: Model, copies: int) -> None:
    text = sequence(33, VOCABULARY[kind])
    is_same(model, model.engine.encode([text] * copies), numpy.repeat(alone(model, [text]), copies, axis=0))


def test_a_thousand_short_texts_beside_long_ones_keep_their_vectors(kind: str, model: Model) -> None:
    lengths = [LONGEST[kind], *(3 + position % 40 for position in range(1000)), LONGEST[kind] - 1]
    texts = [sequence(length, VOCABULARY[kind], seed) for seed, length in enumerate(lengths)]
    is_invariant(model, texts, order=range(len(texts))[::-1], most=61, expected=alone(model, texts))
