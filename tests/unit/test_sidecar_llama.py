"""
The bidirectional Llama against arithmetic written a second time, in float64, from the model's card.
"""

import json
from pathlib import Path

import numpy
import pytest
import torch
from nv_embed_sidecar.engines.llama import LlamaConfig, LlamaEngine, rope_frequencies
from nv_embed_sidecar.engines.padding import groups
from nv_embed_sidecar.models import Model, load
from nv_embed_sidecar.settings import Settings
from nv_embed_sidecar.tokenising import InputType, Truncate
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from nv_embed.errors import EmbedError, InvalidInput

CONFIG = {
    "architectures": ["LlamaBidirectionalModel"],
    "model_type": "llama_bidirec",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 400,
    "max_position_embeddings": 131072,
    "bos_token_id": 256,
    "hidden_act": "silu",
    "pooling": "avg",
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
BOS = 256
TEXTS = [
    "Who built the first dynamo?",
    "",
    "Ányos Jedlik, a Benedictine monk, described the self-excited dynamo in 1861. 🙂 " * 9,
    "日本語のテキスト",
]


def make_checkpoint(directory: Path, *, prefix: str = "", shards: int = 1, template: bool = True) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    make_tokenizer(template).save(str(directory / "tokenizer.json"))
    tensors = {prefix + name: tensor for name, tensor in random_weights().items()}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, directory / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def make_tokenizer(template: bool) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["query: who built the first dynamo passage: the dynamo was built by"] * 3, trainer)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    if template:
        begin, end = (tokenizer.token_to_id(token) for token in ("<|begin_of_text|>", "<|end_of_text|>"))
        # As in published checkpoints that add an end: this model is to have none.
        tokenizer.post_processor = TemplateProcessing(
            single="<|begin_of_text|> $A <|end_of_text|>", special_tokens=[("<|begin_of_text|>", begin), ("<|end_of_text|>", end)]
        )
    return tokenizer


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)

    def tensor(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    weights = {"embed_tokens.weight": tensor(400, 64, scale=1.0), "norm.weight": 1 + tensor(64)}
    for layer in range(CONFIG["num_hidden_layers"]):
        name = f"layers.{layer}."
        weights |= {
            name + "input_layernorm.weight": 1 + tensor(64),
            name + "self_attn.q_proj.weight": tensor(64, 64),
            name + "self_attn.k_proj.weight": tensor(16, 64),
            name + "self_attn.v_proj.weight": tensor(16, 64),
            name + "self_attn.o_proj.weight": tensor(64, 64),
            name + "post_attention_layernorm.weight": 1 + tensor(64),
            name + "mlp.gate_proj.weight": tensor(96, 64),
            name + "mlp.up_proj.weight": tensor(96, 64),
            name + "mlp.down_proj.weight": tensor(64, 96),
        }
    return weights


def reference_vector(ids: list[int]) -> numpy.ndarray:
    """The forward pass of one text, in float64, step by step as on the card."""
    weights = {name: tensor.double().numpy() for name, tensor in random_weights().items()}
    x = weights["embed_tokens.weight"][ids]
    for layer in range(3):
        name = f"layers.{layer}."
        normed = rms_norm(x, weights[name + "input_layernorm.weight"])
        query = (normed @ weights[name + "self_attn.q_proj.weight"].T).reshape(len(ids), 8, 8)
        key = (normed @ weights[name + "self_attn.k_proj.weight"].T).reshape(len(ids), 2, 8)
        value = (normed @ weights[name + "self_attn.v_proj.weight"].T).reshape(len(ids), 2, 8)
        attended = numpy.empty((len(ids), 8, 8))
        for head in range(8):
            scores = turned(query[:, head]) @ turned(key[:, head // 4]).T / numpy.sqrt(8)
            scores = numpy.exp(scores - scores.max(axis=1, keepdims=True))
            attended[:, head] = scores / scores.sum(axis=1, keepdims=True) @ value[:, head // 4]
        x = x + attended.reshape(len(ids), 64) @ weights[name + "self_attn.o_proj.weight"].T
        normed = rms_norm(x, weights[name + "post_attention_layernorm.weight"])
        gate = normed @ weights[name + "mlp.gate_proj.weight"].T
        up = normed @ weights[name + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + numpy.exp(-gate)) * up) @ weights[name + "mlp.down_proj.weight"].T
    return rms_norm(x, weights["norm.weight"]).mean(axis=0)


def rms_norm(x: numpy.ndarray, weight: numpy.ndarray) -> numpy.ndarray:
    return x / numpy.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-5) * weight


def turned(x: numpy.ndarray) -> numpy.ndarray:
    """Rotary positions by complex numbers: component i and component i + half are one of them."""
    frequencies = []
    for index in range(4):
        frequency = 500000 ** (-2 * index / 8)
        wavelength = 2 * numpy.pi / frequency
        if wavelength > 8192 / 1:
            frequency = frequency / 32
        elif wavelength > 8192 / 4:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / 32 + smooth * frequency
        frequencies.append(frequency)
    angles = numpy.outer(numpy.arange(len(x)), frequencies)
    pairs = (x[:, :4] + 1j * x[:, 4:]) * numpy.exp(1j * angles)
    return numpy.concatenate([pairs.real, pairs.imag], axis=1)


def served(directory: Path, **settings: object) -> Model:
    return next(iter(load(Settings(models=(str(directory),), device="cpu", **settings))))


def cosines(left: numpy.ndarray, right: numpy.ndarray) -> numpy.ndarray:
    return (left * right).sum(axis=1) / numpy.linalg.norm(left, axis=1) / numpy.linalg.norm(right, axis=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama") / "tiny-llama")


def test_vectors_agree_with_a_float64_reference_whatever_they_are_batched_with(checkpoint: Path) -> None:
    model = served(checkpoint)
    ids = model.tokenizer.encode(TEXTS, InputType.PASSAGE, Truncate.NONE)
    expected = numpy.stack([reference_vector(text) for text in ids])
    together = model.engine.encode(ids)
    alone = numpy.concatenate([model.engine.encode([text]) for text in ids])
    assert cosines(together, expected).min() >= 0.99999
    assert cosines(alone, expected).min() >= 0.99999
    numpy.testing.assert_allclose(together, expected, rtol=2e-4, atol=2e-4)


def test_padding_beside_a_longer_neighbour_does_not_change_a_vector(checkpoint: Path) -> None:
    engine = served(checkpoint).engine
    texts = [[BOS, *range(5, 5 + length)] for length in (40, 39, 38)]
    assert len(list(groups([len(ids) for ids in texts]))) == 1, "they share a padded batch"
    numpy.testing.assert_allclose(engine.encode(texts), [reference_vector(ids) for ids in texts], rtol=2e-4, atol=2e-4)


def test_the_last_token_changes_the_first_tokens_hidden_state(checkpoint: Path) -> None:
    engine = served(checkpoint).engine
    assert isinstance(engine, LlamaEngine)
    one, _ = engine.hidden_states([[BOS, 5, 6, 7]])
    other, _ = engine.hidden_states([[BOS, 5, 6, 8]])
    assert (one[0, 0] - other[0, 0]).abs().max() > 1e-3


def test_position_counts(checkpoint: Path) -> None:
    engine = served(checkpoint).engine
    one, other = engine.encode([[BOS, 5, 6, 7], [BOS, 7, 6, 5]])
    assert numpy.abs(one - other).max() > 1e-3


def test_rope_frequencies_of_the_1b_model_are_those_on_its_card() -> None:
    config = LlamaConfig.read({**CONFIG, "head_dim": 64})
    frequencies = rope_frequencies(config).numpy()
    plain = 500000.0 ** (-numpy.arange(0, 64, 2) / 64)
    numpy.testing.assert_allclose(frequencies[:15], plain[:15], rtol=1e-12)
    numpy.testing.assert_allclose(frequencies[15:18], [1.290547928e-03, 4.295567966e-04, 9.708287803e-05], rtol=1e-9)
    numpy.testing.assert_allclose(frequencies[18:], plain[18:] / 32, rtol=1e-12)


@pytest.mark.parametrize("template", [True, False])
def test_begin_of_text_stands_in_front_and_nothing_behind(tmp_path: Path, template: bool) -> None:
    directory = make_checkpoint(tmp_path / "llama", template=template)
    config = json.loads((directory / "config.json").read_text())
    begin = Tokenizer.from_file(str(directory / "tokenizer.json")).token_to_id("<|begin_of_text|>")
    (directory / "config.json").write_text(json.dumps({**config, "bos_token_id": begin}))
    model = served(directory)
    (ids,) = model.tokenizer.encode(["built the first dynamo"], InputType.PASSAGE, Truncate.NONE)
    plain = Tokenizer.from_file(str(directory / "tokenizer.json")).encode("built the first dynamo", add_special_tokens=False).ids
    assert ids == [begin, *plain]


@pytest.mark.parametrize(("prefix", "shards"), [("model.", 1), ("", 3), ("model.", 2)])
def test_prefixed_and_sharded_checkpoints_give_the_same_vectors(checkpoint: Path, tmp_path: Path, prefix: str, shards: int) -> None:
    other = served(make_checkpoint(tmp_path / "llama", prefix=prefix, shards=shards))
    ids = other.tokenizer.encode(TEXTS, InputType.PASSAGE, Truncate.NONE)
    numpy.testing.assert_array_equal(other.engine.encode(ids), served(checkpoint).engine.encode(ids))


def test_an_unnamed_llama_has_only_its_native_width_and_what_the_operator_allows(checkpoint: Path) -> None:
    model = served(checkpoint, dims="16,32")
    assert (model.trained_dims, model.declared_dims) == ((64,), (32, 16))
    assert [model.dim(wanted) for wanted in (0, 64, 32)] == [64, 64, 32]
    with pytest.raises(InvalidInput, match=r"was not trained for 48 dimensions, but for 64 \(and the operator allows 32, 16\)"):
        model.dim(48)


def test_a_directory_named_like_a_known_model_gets_its_prompts_and_lengths(tmp_path: Path) -> None:
    model = served(make_checkpoint(tmp_path / "llama-nemotron-embed-1b-v2"))
    assert model.name == "nvidia/llama-3.2-nv-embedqa-1b-v2"
    assert model.tokenizer.max_tokens == 8192
    assert (model.prompt(InputType.QUERY), model.prompt(InputType.PASSAGE)) == ("query: ", "passage: ")
    (query,) = model.tokenizer.encode(["who built it"], InputType.QUERY, Truncate.NONE)
    decoded = Tokenizer.from_file(str(tmp_path / "llama-nemotron-embed-1b-v2" / "tokenizer.json")).decode(query[1:], skip_special_tokens=False)
    assert "".join(decoded.split()).replace("Ġ", "") == "query:whobuiltit"


def test_rope_parameters_of_newer_configurations_are_read_too() -> None:
    old = LlamaConfig.read(CONFIG)
    rope = {**CONFIG["rope_scaling"], "rope_theta": CONFIG["rope_theta"]}
    new = {key: value for key, value in CONFIG.items() if key not in ("rope_theta", "rope_scaling")}
    assert LlamaConfig.read({**new, "rope_parameters": rope}) == old


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling is yarn"),
        ({"attention_bias": True}, "asks for biases"),
        ({"pooling": "weighted_avg"}, "pooling is weighted_avg"),
        ({"num_hidden_layers": 4}, "not those of a Llama"),
    ],
)
def test_a_configuration_that_is_not_supported_is_refused_at_the_start(tmp_path: Path, change: dict[str, object], message: str) -> None:
    directory = make_checkpoint(tmp_path / "llama")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(EmbedError, match=message):
        served(directory)
