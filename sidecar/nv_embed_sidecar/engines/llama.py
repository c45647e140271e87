"""
Bidirectional decoders: NVIDIA's Llama retrievers `llama-3.2-nv-embedqa-1b` and its Mistral retrievers `nv-embedqa-mistral-7b`.

The layers are Llama's, which are Mistral's too; the attention is not causal, so every token sees the whole text. Hub checkpoints bring remote code
for this, which is neither run nor needed: the arithmetic below is all of it.

In:  packed token ids      Out: hidden states of every token
Source: the models' cards and configurations; Llama 3's RoPE scaling.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import fused
from nv_embed_sidecar.engines.attention import Heads, attend
from nv_embed_sidecar.engines.checkpoint import Checkpoint
from nv_embed_sidecar.engines.packing import Packed
from nv_embed_sidecar.engines.torch_device import TorchDevice


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the slow rotary frequencies, for texts longer than those of the first training."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    layers: int
    width: int
    heads: Heads
    intermediate: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """The part of a `config.json` that the arithmetic depends on.

        Raises:
            InvalidInput: it asks for something that is not supported.
        """
        if config.get("hidden_act", "silu") != "silu" or config.get("attention_bias") or config.get("mlp_bias"):
            raise InvalidInput("the model's config.json asks for biases or another activation than silu", hint="this architecture has neither")
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            heads=Heads(
                query=heads,
                kv=int(config.get("num_key_value_heads") or heads),
                width=int(config.get("head_dim") or config["hidden_size"] // heads),
            ),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rope_scaling=_rope_scaling(rope),
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer."""
        attention = 2 * self.width * self.heads.width * (self.heads.query + self.heads.kv)
        return attention + 3 * self.width * self.intermediate


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InvalidInput(f"the model's RoPE scaling is {kind}, which is not supported", hint="supported are llama3 and none")
    return RopeScaling(
        float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"]), int(rope["original_max_position_embeddings"])
    )


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Radians a position, for each pair of components.

    Returns:
        [head_width / 2] float64. Fast frequencies stay, slow ones are divided by the factor, those between are blended.
    """
    exponents = torch.arange(0, config.heads.width, 2, dtype=torch.float64) / config.heads.width
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


class Rotary:
    """Position as rotation: each pair (i, i + half) of components turns by its position's angle.

    Angles are computed once for every position a text may have, in float64, and applied in float32.
    """

    def __init__(self, config: LlamaConfig, positions: int, device: TorchDevice) -> None:
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), rope_frequencies(config))
        self._cos, self._sin = (turn.float().to(device.device) for turn in (angles.cos(), angles.sin()))
        self._heads = config.heads
        self._fused = device.fused

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of rows with these positions, [rows] int32."""
        if self._fused:
            return partial(self._in_place, positions)
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)
        return partial(self._apart, cos, sin)

    def _in_place(self, positions: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused.kernels().rotate(qkv, positions, self._cos, self._sin, self._heads.query, self._heads.kv)
        return self._split(qkv)

    def _apart(self, cos: Tensor, sin: Tensor, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._split(qkv)
        return rotate(query, cos, sin, scale=self._heads.width**-0.5), rotate(key, cos, sin), value

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = qkv.split_with_sizes((self._heads.query, self._heads.kv, self._heads.kv), dim=1)
        return query, key, value


Rotation = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of [rows, heads.query + 2 * heads.kv, head_width] the queries, turned and scaled for attention, the keys, turned, and the values."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor, scale: float = 1.0) -> Tensor:
    """Turn by position, and scale, in float32.

    Args:
        x: [rows, heads, head_width].
        cos, sin: [rows, 1, head_width / 2] float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Layer:
    """One layer; the products that read the same input are one."""

    def __init__(self, config: LlamaConfig, number: int, checkpoint: Checkpoint, device: TorchDevice) -> None:
        name = f"layers.{number}."

        def weight(part: str, rows: int, columns: int) -> Tensor:
            return checkpoint.take(f"{name}{part}.weight", rows, columns)

        width, attended = config.width, config.heads.query * config.heads.width
        shared = config.heads.kv * config.heads.width
        self._heads, self._eps = config.heads, config.norm_eps
        self._norm_before_attention = device.tensor(checkpoint.take(f"{name}input_layernorm.weight", width))
        self._norm_before_mlp = device.tensor(checkpoint.take(f"{name}post_attention_layernorm.weight", width))
        qkv = [weight("self_attn.q_proj", attended, width), weight("self_attn.k_proj", shared, width), weight("self_attn.v_proj", shared, width)]
        self._qkv = device.linear(torch.cat(qkv))
        self._out = device.linear(weight("self_attn.o_proj", width, attended))
        self._gated = device.gated(weight("mlp.gate_proj", config.intermediate, width), weight("mlp.up_proj", config.intermediate, width))
        self._down = device.linear(weight("mlp.down_proj", width, config.intermediate))

    def __call__(self, x: Tensor, rotation: Rotation, packed: Packed) -> Tensor:
        x = self._out.plus(self._attend(rms_norm(x, self._norm_before_attention, self._eps), rotation, packed), x)
        return self._down.plus(self._gated(rms_norm(x, self._norm_before_mlp, self._eps)), x)

    def _attend(self, x: Tensor, rotation: Rotation, packed: Packed) -> Tensor:
        query, key, value = rotation(self._qkv(x).view(packed.rows, -1, self._heads.width))
        return attend(query, key, value, packed, self._heads)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each row to unit mean square in float32, times the weight. On a GPU one pass does both, and rounds once."""
    if x.is_cuda:
        return functional.rms_norm(x, weight.shape, weight, eps)
    return functional.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight


class Llama:
    """Token ids to hidden states.

    Args:
        positions: the longest text, in tokens.
    """

    def __init__(self, config: LlamaConfig, positions: int, checkpoint: Checkpoint, device: TorchDevice) -> None:
        self.width = config.width
        self.compiled, self.recordable = device.compiled, device.recordable
        self.linear_work = 2 * config.layers * config.layer_weights
        self.attention_work = 4 * config.layers * config.heads.query * config.heads.width
        self._eps = config.norm_eps
        self._rotary = Rotary(config, positions, device)
        self._embeddings = device.tensor(checkpoint.take("embed_tokens.weight", config.vocabulary, config.width))
        self._layers = [Layer(config, number, checkpoint, device) for number in range(config.layers)]
        self._norm = device.tensor(checkpoint.take("norm.weight", config.width))

    def __call__(self, packed: Packed) -> Tensor:
        """Hidden states after the final norm, [rows, width]."""
        x = functional.embedding(packed.ids, self._embeddings)
        rotation = self._rotary.at(packed.positions)
        for layer in self._layers:
            x = layer(x, rotation, packed)
        return rms_norm(x, self._norm, self._eps)
