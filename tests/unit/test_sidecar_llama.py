"""
The bidirectional Llama against arithmetic written a second time, in float64, from the model's card.

The checkpoints hold bfloat16, as the published one does, and the reference reads these: the comparison in bf16 is of the arithmetic, not of how the
weights were rounded.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
import torch
from checkpoints import BEGIN, END, LLAMA, LLAMA_1B, LLAMA_DIMS, llama, write_json
from nv_embed_sidecar.engines.llama import LlamaConfig, rope_frequencies
from nv_embed_sidecar.models import Model
from nv_embed_sidecar.tokenising import InputType, Truncate
from proofs import LEAST_COSINE, LENGTHS, cosines, is_exact, is_the_1b_model, sees_the_whole_text, sequence, served
from reference import llama as reference_states
from tokenizers import Tokenizer

from nv_embed.errors import EmbedError, InvalidInput

KNOWN_NAME = "llama-3.2-nv-embedqa-1b-v2"
VOCABULARY = LLAMA["vocab_size"]
PROMPTS = {InputType.QUERY: "query: ", InputType.PASSAGE: "passage: "}
TEXTS = [
    "Who built the first dynamo?",
    "",
    "Ányos Jedlik, a Benedictine monk, described the self-excited dynamo in 1861. 🙂 " * 9,
    "日本語のテキスト",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("small") / KNOWN_NAME)


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def model(checkpoint: Path, request: pytest.FixtureRequest) -> Model:
    return served(checkpoint, precision=request.param, dims=LLAMA_DIMS)


def text_ids(directory: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(directory / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("length", LENGTHS)
def test_vectors_are_those_of_the_reference_at_every_length_and_dimension(checkpoint: Path, model: Model, length: int) -> None:
    is_exact(model, checkpoint, [sequence(length, VOCABULARY)], LLAMA_DIMS)


def test_vectors_of_texts_in_one_batch_are_those_of_the_reference(checkpoint: Path, model: Model) -> None:
    is_exact(model, checkpoint, [sequence(length, VOCABULARY) for length in LENGTHS if length <= 1000], LLAMA_DIMS)


def test_a_text_cut_to_8192_tokens_has_the_vector_of_the_reference(checkpoint: Path, model: Model) -> None:
    (ids,) = model.tokenizer.encode([" ".join(TEXTS) * 99], InputType.PASSAGE, Truncate.END)
    assert len(ids) == 8192
    is_exact(model, checkpoint, [ids], LLAMA_DIMS)


@pytest.mark.parametrize("changes", [{"rope_theta": 10_000.0}, {"rope_scaling": None}, {"rms_norm_eps": 1e-6}, {"causal": True}], ids=str)
def test_the_comparison_would_notice_a_wrong_reading_of_the_card(checkpoint: Path, changes: dict[str, object]) -> None:
    """The bounds are only worth something if what goes wrong in practice exceeds them."""
    ids = sequence(1000, VOCABULARY)
    right = reference_states(checkpoint, ids).mean(axis=0, keepdims=True)
    wrong = reference_states(checkpoint, ids, causal="causal" in changes, changes=changes).mean(axis=0, keepdims=True)
    assert cosines(right, wrong)[0] < LEAST_COSINE["fp32"]


@pytest.mark.parametrize("input_type", InputType)
@pytest.mark.parametrize("cut", Truncate)
def test_prompts_and_cuts_give_the_vectors_of_the_ids_that_they_ought_to(
    tmp_path: Path, checkpoint: Path, input_type: InputType, cut: Truncate
) -> None:
    directory = limited(checkpoint, tmp_path / KNOWN_NAME, 64)
    prompt = PROMPTS[input_type]
    wanted = [[begin(directory), *text_ids(directory, prompt + text)] for text in TEXTS]
    texts = TEXTS
    if cut is Truncate.NONE:
        texts, wanted = zip(*((text, ids) for text, ids in zip(TEXTS, wanted, strict=True) if len(ids) <= 64), strict=True)
    elif cut is Truncate.END:
        wanted = [ids[:64] for ids in wanted]
    else:
        head = [begin(directory), *text_ids(directory, prompt.rstrip())]
        wanted = [ids if len(ids) <= 64 else [*head, *ids[len(head) - 64 :]] for ids in wanted]
    for precision in LEAST_COSINE:
        model = served(directory, precision=precision, dims=LLAMA_DIMS)
        ids = model.tokenizer.encode(texts, input_type, cut)
        assert ids == list(wanted)
        is_exact(model, directory, ids, LLAMA_DIMS)


@pytest.mark.parametrize("input_type", InputType)
def test_a_text_that_is_too_long_is_refused_unless_a_cut_is_asked_for(tmp_path: Path, checkpoint: Path, input_type: InputType) -> None:
    model = served(limited(checkpoint, tmp_path / KNOWN_NAME, 64))
    with pytest.raises(InvalidInput, match=r"\d+ tokens exceed the 64 tokens"):
        model.tokenizer.encode(TEXTS, input_type, Truncate.NONE)


def test_8192_tokens_count_the_begin_of_text_and_the_prompt(checkpoint: Path) -> None:
    tokenizer = served(checkpoint).tokenizer
    fitting = " a" * (8192 - tokenizer.overhead())
    (ids,) = tokenizer.encode([fitting], InputType.PASSAGE, Truncate.NONE)
    assert len(ids) == 8192
    with pytest.raises(InvalidInput, match=r"\b8193 tokens exceed the 8192 tokens"):
        tokenizer.encode([fitting + " a"], InputType.PASSAGE, Truncate.NONE)


def limited(checkpoint: Path, directory: Path, positions: int) -> Path:
    """The same checkpoint for shorter texts."""
    shutil.copytree(checkpoint, directory)
    change_config(directory, max_position_embeddings=positions)
    return directory


def change_config(directory: Path, **changes: object) -> None:
    write_json(directory / "config.json", {**json.loads((directory / "config.json").read_text()), **changes})


def begin(directory: Path) -> int:
    return Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id(BEGIN)


@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_the_published_dimensions_are_prefixes_of_the_published_width(tmp_path: Path, precision: str) -> None:
    shape = {key: LLAMA_1B[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")}
    directory = llama(tmp_path / KNOWN_NAME, num_hidden_layers=1, intermediate_size=512, **shape)
    model = served(directory, precision=precision)
    assert (model.trained_dims, model.declared_dims) == ((2048, 1024, 768, 512, 384), ())
    is_exact(model, directory, [sequence(length, VOCABULARY) for length in (1, 9, 40)], model.trained_dims)


@pytest.mark.parametrize("length", [2, 17, 600, 2000])
def test_the_last_token_changes_the_first_tokens_hidden_state(model: Model, length: int) -> None:
    sees_the_whole_text(model, VOCABULARY, length)


def test_hidden_states_are_those_of_the_reference(checkpoint: Path, model: Model) -> None:
    ids = sequence(77, VOCABULARY)
    states = model.engine.hidden_states(ids).cpu().numpy()
    assert cosines(states, reference_states(checkpoint, ids)).min() >= LEAST_COSINE[model.engine.precision]


def test_the_order_of_the_tokens_counts(model: Model) -> None:
    ids = sequence(40, VOCABULARY)
    assert cosines(model.engine.encode([ids]), model.engine.encode([ids[::-1]]))[0] < 0.95


def test_rope_frequencies_of_the_1b_model_are_those_on_its_card() -> None:
    frequencies = rope_frequencies(LlamaConfig.read(LLAMA_1B)).numpy()
    plain = 500000.0 ** (-numpy.arange(0, 64, 2) / 64)
    numpy.testing.assert_allclose(frequencies[:15], plain[:15], rtol=1e-12)
    numpy.testing.assert_allclose(frequencies[15:18], [1.290547928e-03, 4.295567966e-04, 9.708287803e-05], rtol=1e-9)
    numpy.testing.assert_allclose(frequencies[18:], plain[18:] / 32, rtol=1e-12)


def test_rope_parameters_of_newer_configurations_are_read_too() -> None:
    rope = {**LLAMA["rope_scaling"], "rope_theta": LLAMA["rope_theta"]}
    newer = {key: value for key, value in LLAMA.items() if key not in ("rope_theta", "rope_scaling")}
    assert LlamaConfig.read({**newer, "rope_parameters": rope}) == LlamaConfig.read(LLAMA)


@pytest.mark.parametrize("template", [None, f"{BEGIN} $A", f"{BEGIN} $A {END}"])
def test_begin_of_text_stands_in_front_and_nothing_behind(tmp_path: Path, template: str | None) -> None:
    directory = llama(tmp_path / "llama", template=template)
    (ids,) = served(directory).tokenizer.encode(["built the first dynamo"], InputType.PASSAGE, Truncate.NONE)
    assert ids == [begin(directory), *text_ids(directory, "built the first dynamo")]


@pytest.mark.parametrize(
    ("prefix", "shards", "dtype"), [("", 1, torch.float32), ("", 3, torch.bfloat16), ("model.", 1, torch.bfloat16), ("model.", 3, torch.float32)]
)
def test_files_may_be_prefixed_or_sharded_and_hold_either_precision(tmp_path: Path, prefix: str, shards: int, dtype: torch.dtype) -> None:
    directory = llama(tmp_path / "llama", prefix=prefix, shards=shards, dtype=dtype)
    is_exact(served(directory), directory, [sequence(length, VOCABULARY) for length in (1, 17, 100)])


def test_the_layout_of_the_files_does_not_change_a_bit(checkpoint: Path, tmp_path: Path) -> None:
    other = served(llama(tmp_path / "llama", prefix="model.", shards=2))
    texts = [sequence(length, VOCABULARY) for length in (5, 64, 300)]
    numpy.testing.assert_array_equal(other.engine.encode(texts), served(checkpoint).engine.encode(texts))


def test_an_unnamed_llama_has_only_its_native_width_and_what_the_operator_allows(tmp_path: Path) -> None:
    model = served(llama(tmp_path / "llama"), dims="64,128")
    assert (model.trained_dims, model.declared_dims) == ((256,), (128, 64))
    assert [model.dim(wanted) for wanted in (0, 256, 128)] == [256, 256, 128]
    with pytest.raises(InvalidInput, match=r"was not trained for 48 dimensions, but for 256 \(and the operator allows 128, 64\)"):
        model.dim(48)


def test_a_directory_named_like_a_known_model_gets_its_prompts_and_lengths(tmp_path: Path) -> None:
    model = served(llama(tmp_path / "llama-nemotron-embed-1b-v2"))
    assert model.name == "nvidia/llama-3.2-nv-embedqa-1b-v2"
    assert model.tokenizer.max_tokens == 8192
    assert {input_type: model.prompt(input_type) for input_type in InputType} == PROMPTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling is yarn"),
        ({"attention_bias": True}, "asks for biases"),
        ({"pooling": "weighted_avg"}, "pooling is weighted_avg"),
        ({"num_hidden_layers": 3}, "not those of"),
        ({"num_hidden_layers": 1}, "not those of"),
        ({"num_key_value_heads": 4}, "not those of"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_supported_is_refused_at_the_start(tmp_path: Path, change: dict[str, object], message: str) -> None:
    directory = llama(tmp_path / "llama")
    change_config(directory, **change)
    with pytest.raises(EmbedError, match=message):
        served(directory)


@pytest.fixture
def checkpoint_1b(tmp_path: Path) -> Iterator[Path]:
    """2.5 GB, removed at once: pytest keeps the folders of its last runs."""
    directory = llama(tmp_path / KNOWN_NAME, shards=2, **LLAMA_1B)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.slow
def test_the_full_1b_shape_loads_and_runs(checkpoint_1b: Path) -> None:
    is_the_1b_model(served(checkpoint_1b, precision="bf16"), checkpoint_1b)
