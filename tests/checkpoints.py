"""
Small random checkpoints with the shape and the files of the published ones.

The weights are scaled to behave as trained ones do: the residual stream keeps its size, attention prefers some tokens to others, norms and biases are
not trivial. A vector then depends on each token, on its place and on its neighbours, and a wrong implementation is far off.

In:  a directory, what is to differ      Out: config.json, tokenizer.json and safetensors files in it; the same ones each time
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

Tensors = dict[str, torch.Tensor]
Linear = Callable[..., torch.Tensor]

LLAMA = {
    "architectures": ["LlamaBidirectionalModel"],
    "model_type": "llama_bidirec",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "max_position_embeddings": 131072,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
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
LLAMA_1B = {
    **LLAMA,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
}
LLAMA_DIMS = (256, 128, 96, 64, 48)
"""In proportion to the width as 2048, 1024, 768, 512 and 384 are."""

MISTRAL = {
    "architectures": ["MistralBidirectionalModel"],
    "model_type": "mistral_bidirec",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "max_position_embeddings": 32768,
    "hidden_act": "silu",
    "pooling": "avg",
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "vocab_size": 300,
    "type_vocab_size": 2,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}
XLM_ROBERTA = {
    **BERT,
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "layer_norm_eps": 1e-5,
    "type_vocab_size": 1,
    "max_position_embeddings": 514,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}

TAPE = 1_048_573
"""Numbers that are drawn before they come again: a billion of them would take a minute. It is a prime, so that no two rows of a matrix are equal."""

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
LLAMA_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = [
    "query: who built the first dynamo? passage: Ányos Jedlik, a Benedictine monk, described the self-excited dynamo in 1861.",
    "The dynamo turns the motion of a coil in a magnetic field into a direct current; the first electric motors were built the other way round.",
    "A search by meaning finds the passage that answers the question, whether or not it has a word of it.",
] * 3


def llama(
    directory: Path,
    *,
    prefix: str = "",
    shards: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    template: str | None = f"{BEGIN} $A",
    **changes: Any,
) -> Path:
    """NVIDIA's bidirectional Llama: grouped heads, stretched RoPE, byte-level BPE.

    Args:
        prefix: in front of every weight's name.
        shards: files that the weights lie in.
        dtype: of the stored weights.
        template: of the special tokens in the tokenizer's file; None: it has none.
        changes: to `LLAMA`, the `config.json`.
    """
    tokenizer = byte_level_bpe(template)
    config = {**LLAMA, "bos_token_id": tokenizer.token_to_id(BEGIN), "eos_token_id": tokenizer.token_to_id(END), **changes}
    tensors = decoder_weights(config, dtype)
    if prefix:
        # What further heads and buffers a published file may hold; no vector depends on them.
        tensors |= {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    return _write(directory, config, tokenizer, _prefixed(tensors, prefix), shards)


def mistral(directory: Path, *, prefix: str = "", shards: int = 1, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
    """A bidirectional Mistral: as the Llama, with plain RoPE. Its configuration still names the sliding window of the causal model."""
    tokenizer = byte_level_bpe(f"{BEGIN} $A")
    config = {**MISTRAL, "bos_token_id": tokenizer.token_to_id(BEGIN), "eos_token_id": tokenizer.token_to_id(END), **changes}
    return _write(directory, config, tokenizer, _prefixed(decoder_weights(config, dtype), prefix), shards)


def bert(
    directory: Path,
    *,
    prefix: str = "",
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    sentence: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A BERT encoder with WordPiece.

    Args:
        sentence: None for a plain transformers directory; else it gets the files of sentence-transformers, with these keys in
            `config_sentence_transformers.json`.
    """
    config = {**BERT, **changes}
    tensors = encoder_weights(config, dtype)
    if prefix:
        tensors = _prefixed(tensors, prefix) | {"cls.predictions.bias": torch.ones(config["vocab_size"])}
    _write(directory, config, word_piece(config["vocab_size"]), tensors, shards)
    if sentence is not None:
        _write_sentence_files(directory, config, sentence)
    return directory


def xlm_roberta(directory: Path, *, prefix: str = "", shards: int = 1, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """An XLM-RoBERTa encoder: BERT with one token type, positions from the padding's index on, and a unigram vocabulary."""
    config = {**XLM_ROBERTA, **changes}
    tensors = encoder_weights(config, dtype)
    if prefix:
        tensors = _prefixed(tensors, prefix) | {"lm_head.bias": torch.ones(config["vocab_size"])}
    return _write(directory, config, unigram(config["vocab_size"]), tensors, shards)


def decoder_weights(config: Mapping[str, Any], dtype: torch.dtype) -> Tensors:
    """Weights of a Llama or a Mistral."""
    draw, linear = _drawing(7, dtype)
    width, inner, heads, kv_heads = (config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    head_width = config.get("head_dim") or width // heads
    # Small as in published models: the first norms' eps then counts, and the text's later hidden states are mostly what the layers made.
    weights = {"embed_tokens.weight": draw(config["vocab_size"], width) / 32, "norm.weight": 1 + draw(width) / 4}
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}."
        weights |= {
            name + "input_layernorm.weight": 1 + draw(width) / 4,
            # Scores of standard deviation 2: a token attends to some others much more than to most.
            name + "self_attn.q_proj.weight": linear(heads * head_width, width, gain=1.4),
            name + "self_attn.k_proj.weight": linear(kv_heads * head_width, width, gain=1.4),
            name + "self_attn.v_proj.weight": linear(kv_heads * head_width, width),
            name + "self_attn.o_proj.weight": linear(width, heads * head_width),
            name + "post_attention_layernorm.weight": 1 + draw(width) / 4,
            name + "mlp.gate_proj.weight": linear(inner, width),
            name + "mlp.up_proj.weight": linear(inner, width),
            name + "mlp.down_proj.weight": linear(width, inner),
        }
    return weights


def encoder_weights(config: Mapping[str, Any], dtype: torch.dtype) -> Tensors:
    """Weights of a BERT or a RoBERTa, with the pooler and the buffer of positions that published files have."""
    draw, linear = _drawing(11, dtype)
    width, inner = config["hidden_size"], config["intermediate_size"]
    weights: Tensors = {"embeddings.position_ids": torch.arange(config["max_position_embeddings"])[None]}

    def add_linear(name: str, out: int, into: int, gain: float = 1.0) -> None:
        weights[name + ".weight"], weights[name + ".bias"] = linear(out, into, gain=gain), draw(out) / 4

    def add_norm(name: str) -> None:
        weights[name + ".weight"], weights[name + ".bias"] = 1 + draw(width) / 4, draw(width) / 4

    for name, rows in (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "type_vocab_size")):
        weights[f"embeddings.{name}_embeddings.weight"] = draw(config[rows], width) / (16 if name == "word" else 32)
    add_norm("embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}."
        for part in ("query", "key"):
            add_linear(f"{name}attention.self.{part}", width, width, gain=1.4)
        add_linear(name + "attention.self.value", width, width)
        add_linear(name + "attention.output.dense", width, width)
        add_norm(name + "attention.output.LayerNorm")
        add_linear(name + "intermediate.dense", inner, width)
        add_linear(name + "output.dense", width, inner)
        add_norm(name + "output.LayerNorm")
    add_linear("pooler.dense", width, width)
    return weights


def _drawing(seed: int, dtype: torch.dtype) -> tuple[Callable[..., torch.Tensor], Linear]:
    """Two ways to draw numbers: standard normal ones, and those of a matrix that keeps the size of what it is applied to."""
    drawn = numpy.random.default_rng(seed).standard_normal(TAPE, dtype=numpy.float32)
    tape = torch.from_numpy(drawn).to(dtype)
    position = 0

    def draw(*shape: int) -> torch.Tensor:
        nonlocal position
        count = math.prod(shape)
        start, position = position, (position + count) % TAPE
        return tape.roll(-start).repeat(-(-count // TAPE))[:count].view(shape)

    def linear(out: int, into: int, gain: float = 1.0) -> torch.Tensor:
        return draw(out, into) * (gain * into**-0.5)

    return draw, linear


def byte_level_bpe(template: str | None) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = PreTokenizers([Split(Regex(LLAMA_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.train_from_iterator(CORPUS, BpeTrainer(vocab_size=480, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False))
    tokenizer.add_special_tokens([BEGIN, END])
    if template is not None:
        special = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
        tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


def word_piece(size: int) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.train_from_iterator(CORPUS, WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False))
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def unigram(size: int) -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.train_from_iterator(CORPUS, UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return tokenizer


def _prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _write(directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer, tensors: Tensors, shards: int) -> Path:
    assert tokenizer.get_vocab_size() <= config["vocab_size"], "every token has its embedding"
    directory.mkdir(parents=True)
    write_json(directory / "config.json", config)
    tokenizer.save(str(directory / "tokenizer.json"))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, directory / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    write_json(directory / "model.safetensors.index.json", {"weight_map": weight_map})
    return directory


def _write_sentence_files(directory: Path, config: Mapping[str, Any], sentence: Mapping[str, Any]) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"} for index, (path, kind) in enumerate(kinds)
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": config["max_position_embeddings"], "do_lower_case": False})
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True})
    write_json(directory / "config_sentence_transformers.json", sentence)


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))
