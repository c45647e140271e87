"""
The full shape of `llama-3.2-nv-embedqa-1b` on a GPU, with random weights.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from checkpoints import LLAMA_1B, llama
from nv_embed_sidecar.models import Model
from proofs import ON_GPU, alone, is_same, is_the_1b_model, sequence, served

pytestmark = [*ON_GPU, pytest.mark.slow]

DEVICE = "cuda"
VOCABULARY = LLAMA_1B["vocab_size"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = llama(tmp_path_factory.mktemp("full") / "llama-3.2-nv-embedqa-1b-v2", shards=2, **LLAMA_1B)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return served(checkpoint, device=DEVICE, precision="bf16")


def test_it_runs_exactly_and_each_text_by_itself(checkpoint: Path, model: Model) -> None:
    is_the_1b_model(model, checkpoint)


def test_texts_of_8192_tokens_in_a_batch_of_a_thousand_short_ones_fit_the_memory(model: Model) -> None:
    lengths = [8192, 8192, *(5 + position % 30 for position in range(1000))]
    texts = [sequence(length, VOCABULARY, seed) for seed, length in enumerate(lengths)]
    torch.cuda.reset_peak_memory_stats()
    vectors = model.engine.encode(texts)
    few = [0, 1, 2, 500, 1001]
    is_same(model, vectors[few], alone(model, [texts[position] for position in few]))
    assert numpy.isfinite(vectors).all()
    # Weights are 2.5 GB. Were all scores of a layer held at a time, each of the two long texts would take another 4.
    assert torch.cuda.max_memory_allocated() < 10e9


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="other GPUs have other products")
def test_on_a_hopper_a_vector_is_the_same_to_the_last_bit_alone_and_in_any_batch(model: Model) -> None:
    lengths = [8192, 3000, 700, 513, 300, 257, 256, 129, 64, 20, 20, 5, 1, *(5 + position % 30 for position in range(300))]
    texts = [sequence(length, VOCABULARY, seed) for seed, length in enumerate(lengths)]
    whole = model.engine.encode(texts)
    numpy.testing.assert_array_equal(whole[:40], alone(model, texts[:40]))
    for size in (2, 7, 40):
        parts = [model.engine.encode(texts[start : start + size]) for start in range(3, 43, size)]
        numpy.testing.assert_array_equal(numpy.concatenate(parts)[:37], whole[3:40])


def test_it_was_measured_to_be_quicker_than_any_cpu(model: Model) -> None:
    assert model.engine.capacity.tokens_per_s > 20_000
