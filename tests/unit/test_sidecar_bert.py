"""
BERT and XLM-RoBERTa against arithmetic written a second time, in float64.
"""

from pathlib import Path

import pytest
import torch
from checkpoints import BERT, XLM_ROBERTA, bert, write_json, xlm_roberta
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.tokenising import InputType, Truncate
from proofs import LEAST_COSINE, LENGTHS, cosines, is_exact, sees_the_whole_text, sequence, served
from reference import bert as reference_states
from tokenizers import Tokenizer

from nv_embed.errors import EmbedError

KINDS = {"bert": bert, "xlm_roberta": xlm_roberta}
VOCABULARIES = {"bert": BERT["vocab_size"], "xlm_roberta": XLM_ROBERTA["vocab_size"]}
DIMS = (64, 24)
TEXTS = ["Who built the first dynamo?", "", "Ányos Jedlik described the self-excited dynamo in 1861. " * 60, "日本語"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stored in bfloat16, so that the reference and both precisions read the same numbers."""
    return KINDS[kind](tmp_path_factory.mktemp("small") / kind, dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(checkpoint: Path, request: pytest.FixtureRequest) -> Model:
    return served(checkpoint, precision=request.param, dims=DIMS)


@pytest.mark.parametrize("length", [length for length in LENGTHS if length <= 512])
def test_vectors_are_those_of_the_reference_at_every_length_and_dimension(checkpoint: Path, kind: str, model: Model, length: int) -> None:
    is_exact(model, checkpoint, [sequence(length, VOCABULARIES[kind])], DIMS)


def test_vectors_of_texts_in_one_batch_are_those_of_the_reference(checkpoint: Path, kind: str, model: Model) -> None:
    is_exact(model, checkpoint, [sequence(length, VOCABULARIES[kind]) for length in LENGTHS if length <= 512], DIMS)


def test_hidden_states_are_those_of_the_reference(checkpoint: Path, kind: str, model: Model) -> None:
    ids = sequence(77, VOCABULARIES[kind])
    states = model.engine.hidden_states(ids).cpu().numpy()
    assert cosines(states, reference_states(checkpoint, ids)).min() >= LEAST_COSINE[model.engine.precision]


@pytest.mark.parametrize("length", [2, 17, 512])
def test_the_last_token_changes_the_first_tokens_hidden_state(kind: str, model: Model, length: int) -> None:
    sees_the_whole_text(model, VOCABULARIES[kind], length)


def test_the_order_of_the_tokens_counts(kind: str, model: Model) -> None:
    ids = sequence(40, VOCABULARIES[kind])
    assert cosines(model.engine.encode([ids]), model.engine.encode([ids[::-1]]))[0] < 0.995


def test_the_longest_text_of_a_tokenizer_fills_the_positions(checkpoint: Path, model: Model) -> None:
    assert model.tokenizer.max_tokens == 512
    ids = model.tokenizer.encode(TEXTS, InputType.PASSAGE, Truncate.END)
    assert max(map(len, ids)) == 512
    is_exact(model, checkpoint, ids, DIMS)


@pytest.mark.parametrize(
    ("prefix", "shards", "dtype"), [(False, 1, torch.float32), (False, 3, torch.bfloat16), (True, 1, torch.bfloat16), (True, 3, torch.float32)]
)
def test_files_may_be_prefixed_or_sharded_and_hold_either_precision(tmp_path: Path, kind: str, prefix: bool, shards: int, dtype: torch.dtype) -> None:
    own = {"bert": "bert.", "xlm_roberta": "roberta."}
    directory = KINDS[kind](tmp_path / kind, prefix=own[kind] if prefix else "", shards=shards, dtype=dtype)
    is_exact(served(directory), directory, [sequence(length, VOCABULARIES[kind]) for length in (1, 17, 100)])


@pytest.mark.parametrize("input_type", InputType)
@pytest.mark.parametrize("cut", [Truncate.START, Truncate.END])
def test_a_sentence_transformers_directory_gives_prompts_and_vectors(tmp_path: Path, input_type: InputType, cut: Truncate) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    directory = bert(tmp_path / "model", sentence={"prompts": prompts}, max_position_embeddings=64)
    model = served(directory)
    ids = model.tokenizer.encode(TEXTS, input_type, cut)
    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json"))
    begin, end = vocabulary.token_to_id("[CLS]"), vocabulary.token_to_id("[SEP]")
    prompt = vocabulary.encode(prompts[input_type.value], add_special_tokens=False).ids
    for found, text in zip(ids, TEXTS, strict=True):
        plain = vocabulary.encode(text, add_special_tokens=False).ids
        room = 62 - len(prompt)
        kept = plain if len(plain) <= room else plain[:room] if cut is Truncate.END else plain[-room:]
        assert found == [begin, *prompt, *kept, end]
    is_exact(model, directory, ids)


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 2}, {"num_hidden_layers": 4}, {"intermediate_size": 128}], ids=str)
def test_weights_of_another_shape_than_the_configuration_are_refused(tmp_path: Path, shape: dict[str, int]) -> None:
    directory = bert(tmp_path / "model")
    write_json(directory / "config.json", {**BERT, **shape})
    with pytest.raises(EmbedError, match="not those of"):
        served(directory)


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_a_width_that_heads_cannot_share_is_refused(tmp_path: Path, precision: str) -> None:
    directory = bert(tmp_path / "model")
    write_json(directory / "config.json", {**BERT, "num_attention_heads": BERT["hidden_size"] - 1})
    with pytest.raises(EmbedError, match="no multiple of its"):
        served(directory, precision=precision)


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_another_activation_is_not_read_as_the_usual_one(tmp_path: Path, precision: str) -> None:
    directory = bert(tmp_path / "model", hidden_act="relu", dtype=torch.bfloat16)
    is_exact(served(directory, precision=precision), directory, [sequence(length, BERT["vocab_size"]) for length in (1, 17, 100)])
