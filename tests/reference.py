"""
The forward passes written a second time: float64, NumPy, one text at a time, no padding, straight from the models' cards.

Shares nothing with the sidecar, not even the reader of the weights, so that a mistake would have to be made twice to go unseen.

In:  a checkpoint's directory, the token ids of one text      Out: its hidden states, [len(ids), width] float64
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray
from scipy.special import erf

Array = NDArray[numpy.float64]

ROWS = 256
"""Queries that attend at a time: a text of 8192 tokens would otherwise need half a gigabyte a head."""


class Weights:
    """The tensors of a checkpoint, read from its safetensors files one at a time.

    Args:
        first: the name of a tensor that every checkpoint of this architecture has; what stands in front of it in the files stands in front of all.
    """

    def __init__(self, directory: Path, first: str) -> None:
        self._raw: dict[str, tuple[str, Any]] = {}
        for file in sorted(directory.glob("*.safetensors")):
            self._raw |= _mapped(file)
        self._prefix = next(name.removesuffix(first) for name in self._raw if name.endswith(first))

    def __getitem__(self, name: str) -> Array:
        kind, raw = self._raw[self._prefix + name]
        return _wide(kind, raw)

    def rows(self, name: str, ids: Sequence[int]) -> Array:
        kind, raw = self._raw[self._prefix + name]
        return _wide(kind, raw[list(ids)])

    def parameters(self, name: str = "") -> int:
        """Numbers in the tensors of this name, or in all."""
        return sum(raw.size for stored, (_, raw) in self._raw.items() if name in ("", stored.removeprefix(self._prefix)))


def _mapped(file: Path) -> dict[str, tuple[str, Any]]:
    """A safetensors file: the header's length in eight bytes, the header in JSON, the numbers."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    header.pop("__metadata__", None)
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8"}
    return {
        name: (said["dtype"], numpy.memmap(file, types[said["dtype"]], "r", 8 + size + said["data_offsets"][0], tuple(said["shape"])))
        for name, said in header.items()
    }


def _wide(kind: str, raw: Any) -> Array:
    """To float64. A bfloat16 is the upper half of a float32."""
    if kind == "BF16":
        raw = (numpy.asarray(raw).astype(numpy.uint32) << 16).view(numpy.float32)
    return numpy.asarray(raw, dtype=numpy.float64)


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return config


def mean_vector(directory: Path, ids: Sequence[int]) -> Array:
    """The pooled vector of one text, not normalised: [width]."""
    kind = config_of(directory)["model_type"]
    forward = bert if kind in ("bert", "xlm-roberta", "roberta") else llama
    pooled: Array = forward(directory, ids).mean(axis=0)
    return pooled


def llama(directory: Path, ids: Sequence[int], *, causal: bool = False, changes: Mapping[str, Any] | None = None) -> Array:
    """Hidden states of a bidirectional Llama or Mistral after the final norm.

    Args:
        causal, changes: what a wrong implementation would do: attend to the left only, or read another configuration.
    """
    config = {**config_of(directory), **(changes or {})}
    weights = Weights(directory, "embed_tokens.weight")
    heads, kv_heads, eps = config["num_attention_heads"], config["num_key_value_heads"], config["rms_norm_eps"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    turns = numpy.exp(1j * numpy.outer(numpy.arange(len(ids)), rope_frequencies(config, head_width)))
    x = weights.rows("embed_tokens.weight", ids)
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}."
        normed = rms_norm(x, weights[name + "input_layernorm.weight"], eps)
        query = (normed @ weights[name + "self_attn.q_proj.weight"].T).reshape(len(ids), heads, head_width)
        key = (normed @ weights[name + "self_attn.k_proj.weight"].T).reshape(len(ids), kv_heads, head_width)
        value = (normed @ weights[name + "self_attn.v_proj.weight"].T).reshape(len(ids), kv_heads, head_width)
        attended = grouped_attention(query, key, value, turns, causal=causal)
        x = x + attended @ weights[name + "self_attn.o_proj.weight"].T
        normed = rms_norm(x, weights[name + "post_attention_layernorm.weight"], eps)
        gate = normed @ weights[name + "mlp.gate_proj.weight"].T
        up = normed @ weights[name + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + numpy.exp(-gate)) * up) @ weights[name + "mlp.down_proj.weight"].T
    return rms_norm(x, weights["norm.weight"], eps)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / numpy.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * weight


def rope_frequencies(config: Mapping[str, Any], head_width: int) -> list[float]:
    """Radians a position of each pair: Llama 3 leaves the fast ones, divides the slow ones by the factor, and blends between."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config["rope_theta"]
    plain = [theta ** (-2 * pair / head_width) for pair in range(head_width // 2)]
    if rope.get("rope_type", "default") != "llama3":
        return plain
    return [_stretched(frequency, rope) for frequency in plain]


def _stretched(frequency: float, rope: Mapping[str, Any]) -> float:
    wavelength = 2 * math.pi / frequency
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def turn(x: Array, turns: NDArray[numpy.complex128]) -> Array:
    """Rotary positions by complex numbers: component i and component i + half are one of them."""
    half = x.shape[1] // 2
    pairs = (x[:, :half] + 1j * x[:, half:]) * turns
    return numpy.concatenate([pairs.real, pairs.imag], axis=1)


def grouped_attention(query: Array, key: Array, value: Array, turns: NDArray[numpy.complex128], *, causal: bool) -> Array:
    """Attention with rotary positions; each key/value head serves as many neighbouring query heads as there are for each. [length, heads, width]."""
    group = query.shape[1] // key.shape[1]
    turned = [turn(key[:, head], turns) for head in range(key.shape[1])]

    attended = [
        attention(turn(query[:, head], turns), turned[head // group], value[:, head // group], causal=causal) for head in range(query.shape[1])
    ]
    return numpy.concatenate(attended, axis=1)


def attention(query: Array, key: Array, value: Array, *, causal: bool = False) -> Array:
    """One head, every token to every other: softmax(query · key / sqrt(width)) · value. All [length, width]."""
    attended = numpy.empty_like(query)
    query = query / math.sqrt(query.shape[1])
    for start in range(0, len(query), ROWS):
        scores = query[start : start + ROWS] @ key.T
        if causal:
            scores[numpy.arange(len(key)) > numpy.arange(start, start + len(scores))[:, None]] = -numpy.inf
        scores -= scores.max(axis=1, keepdims=True)
        numpy.exp(scores, out=scores)
        attended[start : start + ROWS] = scores @ value / scores.sum(axis=1, keepdims=True)
    return attended


def bert(directory: Path, ids: Sequence[int]) -> Array:
    """Hidden states of BERT, RoBERTa or XLM-RoBERTa: learned positions, the norm behind each block, gelu by the error function (or else relu)."""
    config = config_of(directory)
    weights = Weights(directory, "embeddings.word_embeddings.weight")
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    # RoBERTa's positions begin behind the padding's index.
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    x = weights.rows("embeddings.word_embeddings.weight", ids)
    x = x + weights["embeddings.position_embeddings.weight"][first : first + len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = _layer_norm(x, weights, "embeddings.LayerNorm.", eps)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}."
        query, key, value = (numpy.split(_linear(x, weights, f"{name}attention.self.{part}."), heads, axis=1) for part in ("query", "key", "value"))
        attended = numpy.concatenate([attention(*head) for head in zip(query, key, value, strict=True)], axis=1)
        x = _layer_norm(x + _linear(attended, weights, name + "attention.output.dense."), weights, name + "attention.output.LayerNorm.", eps)
        inner = _linear(x, weights, name + "intermediate.dense.")
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2 if config["hidden_act"] == "gelu" else numpy.maximum(inner, 0)
        x = _layer_norm(x + _linear(inner, weights, name + "output.dense."), weights, name + "output.LayerNorm.", eps)
    return x


def _linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[name + "weight"].T + weights[name + "bias"]


def _layer_norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    x = x - x.mean(axis=1, keepdims=True)
    return x / numpy.sqrt((x * x).mean(axis=1, keepdims=True) + eps) * weights[name + "weight"] + weights[name + "bias"]
