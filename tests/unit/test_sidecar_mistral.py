"""
The bidirectional Mistral against arithmetic written a second time, in float64.
"""

from pathlib import Path

import numpy
import pytest
from checkpoints import BEGIN, MISTRAL, mistral
from nv_embed_sidecar.engines.llama import LlamaConfig, rope_frequencies
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.tokenising import InputType, Truncate
from proofs import LEAST_COSINE, LENGTHS, cosines, is_exact, sees_the_whole_text, sequence, served
from reference import llama as reference_states
from tokenizers import Tokenizer

VOCABULARY = MISTRAL["vocab_size"]
DIMS = (64, 24)
TEXTS = ["Who built the first dynamo?", "", "Ányos Jedlik described the self-excited dynamo in 1861. " * 9, "日本語"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mistral(tmp_path_factory.mktemp("small") / "mistral")


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(checkpoint: Path, request: pytest.FixtureRequest) -> Model:
    return served(checkpoint, precision=request.param, dims=DIMS)


@pytest.mark.parametrize("length", [length for length in LENGTHS[::2] if length <= 1000])
def test_vectors_are_those_of_the_reference_at_every_length_and_dimension(checkpoint: Path, model: Model, length: int) -> None:
    is_exact(model, checkpoint, [sequence(length, VOCABULARY)], DIMS)


@pytest.mark.parametrize("window", [None, 4, 16])
def test_the_sliding_window_of_the_causal_model_does_not_limit_attention(tmp_path: Path, window: int | None) -> None:
    directory = mistral(tmp_path / "mistral", sliding_window=window)
    is_exact(served(directory), directory, [sequence(length, VOCABULARY) for length in (3, 60, 300)])


@pytest.mark.parametrize("length", [2, 17, 600, 2000])
def test_the_last_token_changes_the_first_tokens_hidden_state(model: Model, length: int) -> None:
    sees_the_whole_text(model, VOCABULARY, length)


def test_hidden_states_are_those_of_the_reference(checkpoint: Path, model: Model) -> None:
    ids = sequence(77, VOCABULARY)
    states = model.engine.hidden_states(ids).cpu().numpy()
    assert cosines(states, reference_states(checkpoint, ids)).min() >= LEAST_COSINE[model.engine.precision]


def test_rope_frequencies_are_not_stretched() -> None:
    config = LlamaConfig.read({**MISTRAL, "head_dim": 128})
    numpy.testing.assert_allclose(rope_frequencies(config).numpy(), 10000.0 ** (-numpy.arange(0, 128, 2) / 128), rtol=1e-12)


@pytest.mark.parametrize(("prefix", "shards"), [("model.", 1), ("", 3), ("model.", 2)])
def test_files_may_be_prefixed_or_sharded(tmp_path: Path, prefix: str, shards: int) -> None:
    directory = mistral(tmp_path / "mistral", prefix=prefix, shards=shards)
    is_exact(served(directory), directory, [sequence(length, VOCABULARY) for length in (1, 17, 100)])


def test_a_text_is_its_tokens_behind_the_begin_of_text(checkpoint: Path, model: Model) -> None:
    vocabulary = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = model.tokenizer.encode(TEXTS, InputType.PASSAGE, Truncate.NONE)
    assert ids == [[vocabulary.token_to_id(BEGIN), *vocabulary.encode(text, add_special_tokens=False).ids] for text in TEXTS]
    is_exact(model, checkpoint, ids, DIMS)
