"""
BERT and its descendants of the same arithmetic: NVIDIA's E5 retrievers `nv-embedqa-e5`, E5, MiniLM, XLM-RoBERTa.

In:  packed token ids      Out: hidden states of every token
Source: Devlin et al., BERT, 2018; Liu et al., RoBERTa, 2019.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.engines import kernels
from nv_embed_sidecar.engines.attention import Heads, attend
from nv_embed_sidecar.engines.checkpoint import Checkpoint
from nv_embed_sidecar.engines.linear import CompiledLinear
from nv_embed_sidecar.engines.packing import Packed
from nv_embed_sidecar.engines.torch_device import TorchDevice


@dataclass(frozen=True)
class BertConfig:
    """The part of a `config.json` that the arithmetic depends on.

    Attributes:
        first_position: where positions begin; RoBERTa's begin behind the padding's index.
    """

    layers: int
    width: int
    heads: Heads
    intermediate: int
    vocabulary: int
    positions: int
    first_position: int
    token_types: int
    norm_eps: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "BertConfig":
        heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
        if width % heads:
            raise InvalidInput(f"the model's width, {width}, is no multiple of its {heads} heads", hint="its config.json is damaged, or not a BERT's")
        roberta = config["model_type"] != "bert"
        return cls(
            layers=int(config["num_hidden_layers"]),
            width=width,
            heads=Heads(query=heads, kv=heads, width=width // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            first_position=int(config.get("pad_token_id", 1)) + 1 if roberta else 0,
            token_types=int(config.get("type_vocab_size", 0)),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
        )

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of one layer."""
        return 4 * self.width**2 + 2 * self.width * self.intermediate


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether the `config.json` of a BERT asks for the arithmetic of this file and no variation of it."""
    return (
        config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
    )


class LayerNorm:
    def __init__(self, name: str, config: BertConfig, checkpoint: Checkpoint, device: TorchDevice) -> None:
        weight, bias = (checkpoint.take(f"{name}.{part}", config.width) for part in ("weight", "bias"))
        self._weight, self._bias, self._eps = device.tensor(weight), device.tensor(bias), config.norm_eps
        self.compiled = kernels.Norm(weight.float().clone(), bias.float().clone(), self._eps) if device.compiled else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.compiled is not None:
            return self.compiled(x)
        return functional.layer_norm(x, self._weight.shape, self._weight, self._bias, self._eps)


class Layer:
    """One layer; queries, keys and values are one product."""

    def __init__(self, config: BertConfig, number: int, checkpoint: Checkpoint, device: TorchDevice) -> None:
        name = f"encoder.layer.{number}."

        def dense(part: str, rows: int, columns: int) -> tuple[Tensor, Tensor]:
            return checkpoint.take(f"{name}{part}.weight", rows, columns), checkpoint.take(f"{name}{part}.bias", rows)

        width, intermediate = config.width, config.intermediate
        self._heads = config.heads
        query, key, value = (dense(f"attention.self.{part}", width, width) for part in ("query", "key", "value"))
        scale = config.heads.width**-0.5
        query = (query[0].float() * scale, query[1].float() * scale)
        self._qkv = device.linear(*(torch.cat([part.float() for part in parts]) for parts in zip(query, key, value, strict=True)))
        self._out = device.linear(*dense("attention.output.dense", width, width))
        self._norm_after_attention = LayerNorm(f"{name}attention.output.LayerNorm", config, checkpoint, device)
        self._up = device.linear(*dense("intermediate.dense", intermediate, width))
        self._down = device.linear(*dense("output.dense", width, intermediate))
        self._norm_after_mlp = LayerNorm(f"{name}output.LayerNorm", config, checkpoint, device)

    def compiled(self) -> kernels.Layer:
        """The layer as the compiled kernels take it, on a device that has them."""
        qkv, out, up, down = (product.weight for product in (self._qkv, self._out, self._up, self._down) if isinstance(product, CompiledLinear))
        after_attention, after_mlp = (norm.compiled for norm in (self._norm_after_attention, self._norm_after_mlp) if norm.compiled is not None)
        return kernels.Layer(qkv, out, up, down, after_attention, after_mlp)

    def __call__(self, x: Tensor, packed: Packed) -> Tensor:
        query, key, value = self._qkv(x).view(packed.rows, 3, self._heads.query, self._heads.width).unbind(1)
        x = self._norm_after_attention(self._out.plus(attend(query, key, value, packed, self._heads), x))
        return self._norm_after_mlp(self._down.plus(self._up.gelu(x), x))


class Bert:
    """Token ids to hidden states; the pooler and the heads for other tasks are not part of it."""

    def __init__(self, config: BertConfig, checkpoint: Checkpoint, device: TorchDevice) -> None:
        self.width = config.width
        self.compiled, self.recordable = device.compiled, device.recordable
        self.linear_work = 2 * config.layers * config.layer_weights
        self.attention_work = 4 * config.layers * config.width
        positions = checkpoint.take("embeddings.position_embeddings.weight", config.positions, config.width).float()
        if config.token_types:
            # Every text is one segment, of the first type.
            positions = positions + checkpoint.take("embeddings.token_type_embeddings.weight", config.token_types, config.width)[0].float()
        self._positions = device.tensor(positions[config.first_position :])
        self._words = device.tensor(checkpoint.take("embeddings.word_embeddings.weight", config.vocabulary, config.width))
        self._norm = LayerNorm("embeddings.LayerNorm", config, checkpoint, device)
        self._layers = [Layer(config, number, checkpoint, device) for number in range(config.layers)]
        self._stack = kernels.Stack([layer.compiled() for layer in self._layers], config.heads.query, config.heads.width) if device.compiled else None

    def __call__(self, packed: Packed) -> Tensor:
        """Hidden states after the last layer, [rows, width]."""
        x = self._norm(functional.embedding(packed.ids, self._words) + functional.embedding(packed.positions, self._positions))
        if self._stack is not None and torch.get_num_threads() == 1:
            return self._stack(x, packed.bounds)
        for layer in self._layers:
            x = layer(x, packed)
        return x
