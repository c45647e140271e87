"""
NVIDIA's bidirectional Llama: the text retrievers `llama-3.2-nv-embedqa-1b`.

The layers are Llama 3's; the attention is not causal, so every token sees the whole text. Hub checkpoints bring remote code for this, which is
neither run nor needed: the arithmetic below is all of it.

In:  token ids      Out: mean-pooled vectors
Source: the model's card and configuration; Llama 3's RoPE scaling.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from nv_embed.errors import InvalidInput
from nv_embed_sidecar import pooling
from nv_embed_sidecar.engines import Vectors
from nv_embed_sidecar.engines.padding import groups, pad
from nv_embed_sidecar.engines.torch_device import TorchDevice

PREFIX = "model."
UNUSED = ("lm_head.", "rotary_emb.")


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
    heads: int
    kv_heads: int
    head_width: int
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
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta") or config["rope_theta"]),
            rope_scaling=_rope_scaling(rope),
        )


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
    exponents = torch.arange(0, config.head_width, 2, dtype=torch.float64) / config.head_width
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of components by its position's angle, in float32.

    Args:
        x: [n, heads, length, head_width].
        cos, sin: [length, head_width / 2] float32.
    """
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention of every token to every other; key/value head j serves `heads / kv_heads` neighbouring query heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_width = config.head_width
        self.group = config.heads // config.kv_heads
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        query = rotate(self._heads(self.q_proj(x)), cos, sin)
        key = rotate(self._heads(self.k_proj(x)), cos, sin).repeat_interleave(self.group, dim=1)
        value = self._heads(self.v_proj(x)).repeat_interleave(self.group, dim=1)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=False, scale=self.head_width**-0.5)
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_width).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.intermediate, bias=False)
        self.up_proj = nn.Linear(config.width, config.intermediate, bias=False)
        self.down_proj = nn.Linear(config.intermediate, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class BidirectionalLlama(nn.Module):
    """Token ids to hidden states. Attributes are named as in the checkpoint."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, ids: Tensor, mask: Tensor | None, frequencies: Tensor) -> Tensor:
        """Hidden states after the final norm.

        Args:
            ids: [n, length] token ids, padded on the right.
            mask: [n, length], True for a real token; None where all are.
            frequencies: [head_width / 2] float64, of `rope_frequencies`.
        Returns:
            [n, length, width].
        """
        positions = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float64)
        angles = torch.outer(positions, frequencies)
        cos, sin = angles.cos().float(), angles.sin().float()
        seen = None if mask is None else mask[:, None, None, :]
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin, seen)
        out: Tensor = self.norm(x)
        return out


class LlamaEngine:
    """A bidirectional Llama with mean pooling."""

    def __init__(self, model: BidirectionalLlama, config: LlamaConfig, device: TorchDevice) -> None:
        self._model = model
        self._device = device.device
        self._frequencies = rope_frequencies(config).to(device.device)
        self.width = config.width
        self.device = device.device.type
        self.precision = device.precision

    @classmethod
    def load(cls, files: Sequence[Path], config: Mapping[str, Any], device: TorchDevice) -> "LlamaEngine":
        """Read the weights of a checkpoint.

        Args:
            files: its safetensors files.
            config: its `config.json`.
        Raises:
            InvalidInput: the weights are not those of this architecture.
        """
        read = LlamaConfig.read(config)
        with torch.device("meta"):
            model = BidirectionalLlama(read)
        # Copied, because tensors mapped from a file are not aligned: slower, and other last digits for another order of the same weights.
        state = {name: tensor.to(device.device, device.dtype, copy=True) for name, tensor in _tensors(files)}
        try:
            model.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise InvalidInput(
                f"the weights beside {files[0]} are not those of a Llama of this config.json", hint="is the download complete?"
            ) from error
        return cls(model.eval(), read, device)

    @torch.inference_mode()
    def hidden_states(self, batch: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Hidden states of a padded batch, [n, length, width], and its mask, [n, length]."""
        ids, mask = pad(batch, self._device)
        return self._model(ids, None if bool(mask.all()) else mask, self._frequencies), mask

    @torch.inference_mode()
    def encode(self, batch: Sequence[Sequence[int]]) -> Vectors:
        vectors = numpy.empty((len(batch), self.width), dtype=numpy.float32)
        for positions in groups([len(ids) for ids in batch]):
            vectors[positions] = pooling.mean(*self.hidden_states([batch[position] for position in positions])).cpu().numpy()
        return vectors


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint, without the prefix that some checkpoints give their names, and without those that no vector depends on."""
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict: iterating it directly is not possible
                short = name.removeprefix(PREFIX)
                if not any(part in short for part in UNUSED):
                    yield short, opened.get_tensor(name)
